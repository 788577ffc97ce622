//! Where a store is, as people type it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_host::fuzzing::store_url(bytes);
});
