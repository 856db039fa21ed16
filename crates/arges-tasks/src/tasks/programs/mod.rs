//! Tasks whose answers are programs, run in the sandbox. What is expected of a program never enters the sandbox: it is
//! given inputs there, and its outputs are compared outside.

use serde_json::{Value, json};

use crate::Verdict;
use crate::response::visible;
use crate::sandbox::{Limits, Outcome, Program, Report, Sandbox, SandboxError};
use crate::tasks::language::answer::quoted;

mod chain;
pub(crate) mod python_function;
pub(crate) mod repair;
pub(crate) mod shell_script;

/// Longest program that is run, in bytes.
const MAX_PROGRAM: usize = 1 << 16;

/// Runs a program under the limits that all these tasks have.
fn run(program: &Program) -> Result<Report, SandboxError> {
    let limits = Limits { wall: std::time::Duration::from_secs(4), cpu: 2, ..Limits::default() };
    Sandbox { limits, policy: None }.run(program)
}

/// The sandbox's failure as a verdict.
fn failed(error: &SandboxError) -> Verdict {
    Verdict::unjudged(error.to_string())
}

/// The content of the last code block of a response, or why there is none.
fn code(response: &str) -> Result<&str, Verdict> {
    let visible = visible(response).ok_or_else(Verdict::no_answer)?;
    let none = || Verdict::wrong("there is no code block");
    // Fences are the lines that begin with three backticks.
    let mut fences =
        visible.match_indices("```").filter(|(at, _)| *at == 0 || visible[..*at].ends_with('\n'));
    let mut last = None;
    while let (Some((open, _)), Some((close, _))) = (fences.next(), fences.next()) {
        last = Some(&visible[open + 3..close]);
    }
    let (_, code) = last.and_then(|block| block.split_once('\n')).ok_or_else(none)?;
    match code.trim().is_empty() {
        true => Err(none()),
        false if code.len() > MAX_PROGRAM => Err(Verdict::wrong("the program is too long")),
        false => Ok(code),
    }
}

/// A Python program that calls functions of modules beside it with the arguments that it reads, and prints what they
/// return as its last line.
const CALLER: &str = r#"import importlib, json, sys

sys.path.insert(0, "")
results = []
for module, function, arguments in json.load(sys.stdin):
    try:
        results.append(getattr(importlib.import_module(module), function)(*arguments))
    except Exception as error:
        results.append({"error": type(error).__name__ + ": " + str(error)[:100]})
sys.stdout.write("\n" + json.dumps(results) + "\n")
"#;

/// A call of a function, and what it returns where it is right.
struct Case {
    module: &'static str,
    function: String,
    argument: Value,
    expected: Value,
}

/// Whether a program's functions return what is expected. `files` has the modules.
fn judge_functions(files: impl IntoIterator<Item = (String, String)>, cases: &[Case]) -> Verdict {
    let call = |case: &Case| json!([case.module, case.function, [case.argument]]);
    let calls: Value = cases.iter().map(call).collect();
    let mut program = Program::python(CALLER).with_stdin(calls.to_string());
    for (path, text) in files {
        // The caller's own name is not the program's to have.
        if path != "main.py" {
            program.files.insert(path, text);
        }
    }
    let report = match run(&program) {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    if report.outcome != Outcome::Ok {
        return Verdict::wrong(format!("the program {}{}", report.outcome, last_words(&report)));
    }
    let line = report.stdout.trim_end().rsplit('\n').next().unwrap_or_default();
    let Ok(Value::Array(results)) = serde_json::from_str(line) else {
        return Verdict::wrong("the program prints something of its own at its end");
    };
    if results.len() != cases.len() {
        return Verdict::wrong("the program prints something of its own at its end");
    }
    let wrong = cases.iter().zip(&results).find(|(case, result)| case.expected != **result);
    Verdict::from_check(wrong.map_or(Ok(()), |(case, result)| {
        let call = format!("{}({})", case.function, case.argument);
        Err(format!(
            "{} gives {}, not {}",
            quoted(&call),
            quoted(&result.to_string()),
            quoted(&case.expected.to_string())
        ))
    }))
}

/// The last line of what a program said of its failure.
fn last_words(report: &Report) -> String {
    let line = report.stderr.trim_end().rsplit('\n').next().unwrap_or_default();
    if line.is_empty() { String::new() } else { format!(": {}", quoted(line)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_code_block_counts_and_backticks_within_lines_are_none() {
        let code = |text| code(text).map_err(|verdict| verdict.reason);
        assert_eq!(code("a\n```python\nx = '```'\n```\nb"), Ok("x = '```'\n"));
        assert_eq!(code("```\nfirst\n```\n```sh\nsecond\n```"), Ok("second\n"));
        assert_eq!(code("<think>\n```\na\n```\n</think>\n```py\nb\n```"), Ok("b\n"));
        for text in ["", "a", "```", "```\n```", "```\na", "``````", "<think>\n```\na\n```"] {
            code(text).unwrap_err();
        }
    }
}
