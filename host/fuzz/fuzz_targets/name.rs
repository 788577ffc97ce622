//! Two names, and the names of their files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_files::fuzzing::names(bytes);
    verrou_host::fuzzing::name(bytes);
});
