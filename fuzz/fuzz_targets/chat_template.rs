//! Any text as a chat template: an error or a text, in bounded time and memory, never a panic.
#![no_main]

use glmcore_chat::{Template, Value};
use libfuzzer_sys::fuzz_target;

const VARIABLES: &str = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null,
    "tool_calls": [{"name": "f", "arguments": {"x": 1.5, "y": [true]}}]}], "tools": [{"type": "function"}], "n": 3}"#;

fuzz_target!(|source: &str| {
    if let Ok(template) = Template::parse(source) {
        let variables = Value::parse(VARIABLES).expect("JSON");
        if let Ok(rendered) = template.render(&variables) {
            assert!(rendered.learned.iter().all(|range| rendered.text.get(range.clone()).is_some()));
        }
    }
});
