#![no_main]

#[path = "../../tests/entries/mod.rs"]
#[allow(dead_code)]
mod entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entries::tool_calls(data));
