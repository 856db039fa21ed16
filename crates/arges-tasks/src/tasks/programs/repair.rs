//! Small repositories with a failing test: the model looks, changes files and runs the tests through tools, and at the
//! end functions are called with arguments that no test has.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::chain::{Chain, Kind};
use super::{Case, MAX_PROGRAM, judge_functions, run};
use crate::episode::World;
use crate::sandbox::{Language, Outcome, Program};
use crate::tasks::language::answer::quoted;
use crate::tasks::language::words::made_up;
use crate::tasks::worlds::{Played, Scenario, call, text, tool};
use crate::{Random, Verdict};

pub(crate) static TASK: Played<Repair> = Played::NEW;

const MODULES: [&str; 4] = ["shop", "stock", "report", "text_tools"];
const TESTS: &str = "test_all.py";
/// Files that a repository may grow to.
const MAX_FILES: usize = 32;
/// Arguments of each function at the end, those of the tests included.
const CASES: usize = 10;
/// Arguments of each function in the tests.
const TESTED: usize = 4;

/// A function of a module.
struct Function {
    module: &'static str,
    name: String,
    right: Chain,
    /// What the repository has in its place.
    mistaken: Option<Chain>,
    arguments: Vec<Value>,
}

impl Function {
    fn draw(random: &mut Random, module: &'static str, length: usize) -> Self {
        let kind = if module == "text_tools" { Kind::Text } else { Kind::Numbers };
        loop {
            let right = Chain::draw(random, kind, length);
            let arguments = right.arguments(random, CASES);
            // The tests must see any mistake.
            if right.mistaken(&arguments[..TESTED]).is_some() {
                let name = made_up(random, 2);
                return Self { module, name, right, mistaken: None, arguments };
            }
        }
    }

    /// The function as the repository has it: what it should do as a comment, so that one can tell.
    fn source(&self, chain: &Chain) -> String {
        let comment: String = self.right.told().lines().map(|line| format!("# {line}\n")).collect();
        format!("{comment}{}\n\n", chain.python(&self.name))
    }
}

/// Functions spread over modules, some of them with a mistake.
pub(crate) struct Repair {
    functions: Vec<Function>,
}

impl Repair {
    fn modules(&self) -> Vec<&'static str> {
        let mut modules: Vec<&str> = self.functions.iter().map(|function| function.module).collect();
        modules.dedup();
        modules
    }

    fn source(&self, module: &str, repaired: bool) -> String {
        let functions = self.functions.iter().filter(|function| function.module == module);
        let source = |function: &Function| {
            let has = function.mistaken.as_ref().filter(|_| !repaired).unwrap_or(&function.right);
            function.source(has)
        };
        functions.map(source).collect::<String>().trim_end().to_owned() + "\n"
    }

    fn tests(&self) -> String {
        let imports: String = self.modules().iter().map(|module| format!("import {module}\n")).collect();
        let checks = self.functions.iter().flat_map(|function| {
            function.arguments[..TESTED].iter().map(|argument| {
                let call = format!("{}.{}({argument})", function.module, function.name);
                format!("check({:?}, {call}, {})\n", call, function.right.apply(argument))
            })
        });
        format!(
            "{imports}\nfailed = 0\n\n\ndef check(call, result, expected):\n    global failed\n    \
             if result != expected:\n        failed += 1\n        \
             print(f\"FAILED {{call}}: {{result!r}}, not {{expected!r}}\")\n\n\n{}\n\
             print(\"all tests pass\" if not failed else f\"{{failed}} failed\")\nraise SystemExit(failed > 0)\n",
            checks.collect::<String>()
        )
    }

    fn files(&self) -> BTreeMap<String, String> {
        let modules =
            self.modules().into_iter().map(|module| (format!("{module}.py"), self.source(module, false)));
        modules.chain([(TESTS.to_owned(), self.tests())]).collect()
    }

    fn cases(self) -> Vec<Case> {
        let cases = |function: Function| {
            let Function { module, name, right, arguments, .. } = function;
            arguments.into_iter().map(move |argument| Case {
                module,
                function: name.clone(),
                expected: right.apply(&argument),
                argument,
            })
        };
        self.functions.into_iter().flat_map(cases).collect()
    }

    /// As the tests tell it.
    fn first_failure(&self) -> String {
        let failures = self.functions.iter().flat_map(|function| {
            let results = function.arguments[..TESTED].iter().map(move |argument| {
                let result = function.mistaken.as_ref().map(|chain| chain.apply(argument));
                (function, argument, result, function.right.apply(argument))
            });
            results
                .filter(|(_, _, result, expected)| result.as_ref().is_some_and(|result| result != expected))
        });
        let told = |(function, argument, result, expected): (&Function, &Value, Option<Value>, Value)| {
            let result = result.unwrap_or_default();
            format!("{}.{}({argument}) gives {result}, not {expected}", function.module, function.name)
        };
        { failures }.next().map(told).unwrap_or_default()
    }

    /// The modules with a mistake, each once.
    fn broken(&self) -> Vec<&'static str> {
        let broken = self.functions.iter().filter(|function| function.mistaken.is_some());
        let mut modules: Vec<&str> = broken.map(|function| function.module).collect();
        modules.dedup();
        modules
    }
}

fn write(path: &str, content: &str) -> Vec<Value> {
    vec![call("write_file", json!({ "path": path, "content": content }))]
}

impl Scenario for Repair {
    const NAME: &'static str = "repair";
    const SUMMARY: &'static str = "repair a small Python repository whose tests fail, with tools to read and write files and to run the tests";
    const MAX_DIFFICULTY: u32 = 6;
    const RUNS_PROGRAMS: bool = true;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let modules = (1 + difficulty as usize / 2).min(MODULES.len());
        let mut names = MODULES;
        random.shuffle(&mut names);
        let each = 1 + difficulty as usize / 3;
        let length = 1 + difficulty.div_ceil(2) as usize;
        let mut functions = Vec::new();
        for module in &names[..modules] {
            functions.extend((0..each).map(|_| Function::draw(random, module, length)));
        }
        let mistakes = 1 + usize::from(difficulty >= 5);
        for place in random.sample(functions.len(), mistakes) {
            let function: &mut Function = &mut functions[place];
            function.mistaken = function.right.mistaken(&function.arguments[..TESTED]);
        }
        Self { functions }
    }

    fn prompt(&self) -> String {
        format!(
            "The tests of a small Python repository fail. Each function has a comment that says what it should do. \
             Find what is wrong and repair it, with the tools; leave the tests as they are. When all tests pass, say \
             that you are done. The repository has the files {} and {TESTS}. The first failure is: {}.",
            self.modules().iter().map(|module| format!("{module}.py")).collect::<Vec<_>>().join(", "),
            self.first_failure()
        )
    }

    fn tools(&self) -> Vec<Value> {
        let path = ("path", "string", "the file's path");
        vec![
            tool("list_files", "The paths of all files", &[]),
            tool("read_file", "The content of a file", &[path]),
            tool("write_file", "Write a file anew", &[path, ("content", "string", "all of it")]),
            tool(
                "replace",
                "Replace a text that a file has once",
                &[path, ("old", "string", "the text"), ("new", "string", "what takes its place")],
            ),
            tool("run_tests", "Run the tests", &[]),
        ]
    }

    fn expected(&self) -> Value {
        self.broken()
            .iter()
            .map(|module| (format!("{module}.py"), json!(self.source(module, true))))
            .collect::<Map<_, _>>()
            .into()
    }

    fn open(self) -> Box<dyn World> {
        Box::new(Repository { files: self.files(), cases: self.cases() })
    }

    fn thinking(&self) -> String {
        "Read the modules, compare each function with its comment, and write the line anew that differs."
            .to_owned()
    }

    fn solution(&self) -> (Vec<Vec<Value>>, String) {
        let mut turns = Vec::new();
        for module in self.broken() {
            let path = format!("{module}.py");
            turns.push(vec![call("read_file", json!({ "path": path }))]);
            turns.push(write(&path, &self.source(module, true)));
        }
        (turns, "All is repaired.".to_owned())
    }

    fn wrong(&self) -> Vec<(Vec<Vec<Value>>, String)> {
        let done = || "All is repaired.".to_owned();
        let module = self.broken()[0];
        let path = format!("{module}.py");
        // The tests made to pass, by taking them away or by what the functions return for them alone.
        let no_tests = write(TESTS, "print('all tests pass')\n");
        let mut special = self.source(module, false);
        for function in self.functions.iter().filter(|function| function.module == module) {
            let cases = function.arguments[..TESTED].iter().map(|argument| {
                format!("    if x == {argument}:\n        return {}\n", function.right.apply(argument))
            });
            let head = format!("def {}(x):\n", function.name);
            special = special.replace(&head, &format!("{head}{}", cases.collect::<String>()));
        }
        let right = self.source(module, true);
        let mut wrong = vec![
            (Vec::new(), done()),
            (vec![no_tests], done()),
            (vec![write(&path, &right.replace("return", "retrun"))], done()),
            (vec![write("json.py", "def load(x): return []\ndef dumps(x): return '[]'\n")], done()),
        ];
        if self.mistake_shows_beyond_the_tests() {
            wrong.push((vec![write(&path, &special)], done()));
        }
        wrong
    }
}

impl Repair {
    /// Whether the first broken module's mistakes differ for arguments that no test has.
    fn mistake_shows_beyond_the_tests(&self) -> bool {
        let module = self.broken()[0];
        self.functions.iter().filter(|function| function.module == module).any(|function| {
            let differs = |argument: &Value| {
                let mistaken = function.mistaken.as_ref();
                mistaken.is_some_and(|chain| chain.apply(argument) != function.right.apply(argument))
            };
            let tested = &function.arguments[..TESTED];
            function.arguments[TESTED..]
                .iter()
                .any(|argument| !tested.contains(argument) && differs(argument))
        })
    }
}

struct Repository {
    files: BTreeMap<String, String>,
    cases: Vec<Case>,
}

impl Repository {
    fn file(&self, path: &str) -> Result<&String, String> {
        self.files.get(path).ok_or_else(|| format!("there is no file {}", quoted(path)))
    }

    fn write(&mut self, path: &str, content: String) -> Result<String, String> {
        if !crate::sandbox::is_plain_path(path) {
            return Err(format!("{} is no path within the repository", quoted(path)));
        }
        let others = self.files.iter().filter(|(other, _)| *other != path);
        let (count, bytes) = others.fold((0, 0), |(count, bytes), (_, text)| (count + 1, bytes + text.len()));
        if count >= MAX_FILES || bytes + content.len() > MAX_PROGRAM {
            return Err("the repository would become too large".to_owned());
        }
        let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        if self.files.keys().any(|other| below(other, path) || below(path, other)) {
            return Err(format!("{} cannot be a file and a directory", quoted(path)));
        }
        self.files.insert(path.to_owned(), content);
        Ok("written".to_owned())
    }

    fn run_tests(&self) -> Result<String, String> {
        let program = Program {
            language: Language::Python,
            arguments: vec![TESTS.to_owned()],
            files: self.files.clone(),
            stdin: String::new(),
        };
        let report = run(&program).map_err(|error| error.to_string())?;
        let told = [report.stdout, report.stderr].concat();
        Ok(match report.outcome {
            Outcome::Ok | Outcome::Exit(_) => told,
            outcome => format!("{told}\nthe tests' program {outcome}"),
        })
    }
}

impl World for Repository {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
        let path = text(arguments, "path");
        match name {
            "list_files" => Ok(self.files.keys().map(String::as_str).collect::<Vec<_>>().join("\n")),
            "read_file" => self.file(path).cloned(),
            "write_file" => self.write(path, text(arguments, "content").to_owned()),
            "replace" => {
                let (old, new) = (text(arguments, "old"), text(arguments, "new"));
                let content = self.file(path)?;
                match if old.is_empty() { 0 } else { content.matches(old).count() } {
                    1 => {
                        let content = content.replacen(old, new, 1);
                        self.write(path, content)
                    }
                    count => Err(format!("the file has the text {count} times, not once")),
                }
            }
            "run_tests" => self.run_tests(),
            _ => Err("there is no such tool".to_owned()),
        }
    }

    fn judge(&mut self, _answer: &str) -> Verdict {
        judge_functions(self.files.clone(), &self.cases)
    }

    fn max_turns(&self) -> usize {
        20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_in_the_repository_and_small() {
        let mut repository = Repository { files: BTreeMap::new(), cases: Vec::new() };
        let mut write = |path: &str, content: &str| repository.write(path, content.to_owned());
        assert_eq!(write("a/b.py", "x"), Ok("written".to_owned()));
        for path in ["../a", "/etc/passwd", "", "a/../../b", "a", "a/b.py/c", "a\0"] {
            write(path, "x").unwrap_err();
        }
        write("big", &"x".repeat(MAX_PROGRAM)).unwrap_err();
        for number in 0..MAX_FILES - 1 {
            write(&number.to_string(), "").unwrap();
        }
        write("more", "").unwrap_err();
        write("a/b.py", "y").unwrap();
    }

    #[test]
    fn a_text_is_replaced_where_it_stands_once() {
        let files = BTreeMap::from([("f".to_owned(), "a b a".to_owned())]);
        let mut repository = Repository { files, cases: Vec::new() };
        let mut replace = |old: &str| {
            let Value::Object(arguments) = json!({ "path": "f", "old": old, "new": "c" }) else {
                unreachable!()
            };
            repository.call("replace", &arguments)
        };
        for old in ["a", "", "x"] {
            replace(old).unwrap_err();
        }
        replace("b").unwrap();
        assert_eq!(repository.files["f"], "a c a");
    }
}
