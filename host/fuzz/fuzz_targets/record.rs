//! The bytes of a lock's file, and of the fence counter.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    verrou_files::fuzzing::record(bytes);
});
