//! Store URLs as typed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_host::fuzzing::store_url(bytes);
});
