//! The text of a serialized lock.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_host::fuzzing::serialized(bytes);
});
