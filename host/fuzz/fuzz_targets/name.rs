//! Two names, and the files that they get.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_host::fuzzing::name(bytes);
});
