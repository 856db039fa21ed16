//! A Python function from its description, tried with arguments that the prompt does not show.

use serde_json::{Value, json};

use super::chain::{Chain, Kind};
use super::{Case, code, judge_functions};
use crate::tasks::language::words::made_up;
use crate::tasks::language::{Drawn, Problem};
use crate::{Instance, Random, Verdict};

pub(crate) static TASK: Drawn<PythonFunction> = Drawn::NEW;

const MODULE: &str = "solution";
/// Arguments that a function is tried with.
const CASES: usize = 12;

/// What the function computes.
enum Function {
    Chain(Chain),
    /// f(0) = `first`, f(1) = `second`, f(n) = `a` f(n - 1) + `b` f(n - 2), modulo `modulus`.
    Recurrence {
        first: i64,
        second: i64,
        a: i64,
        b: i64,
        modulus: i64,
    },
}

impl Function {
    fn apply(&self, argument: &Value) -> Value {
        match self {
            Self::Chain(chain) => chain.apply(argument),
            Self::Recurrence { first, second, a, b, modulus } => {
                let count = argument.as_u64().unwrap_or(0);
                let next = |(x, y): (i64, i64), _| (y, (a * y + b * x) % modulus);
                json!((0..count).fold((first % modulus, second % modulus), next).0)
            }
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Chain(Chain { kind: Kind::Numbers, .. }) => {
                "takes a list of whole numbers. It should".to_owned()
            }
            Self::Chain(_) => "takes a text. It should".to_owned(),
            Self::Recurrence { first, second, a, b, modulus } => format!(
                "takes a whole number n from 0 to 1000 and returns f(n) modulo {modulus}, where f(0) = {first}, \
                 f(1) = {second} and f(n) = {a} * f(n - 1) + {b} * f(n - 2)."
            ),
        }
    }

    fn python(&self, name: &str) -> String {
        match self {
            Self::Chain(chain) => chain.python(name),
            Self::Recurrence { first, second, a, b, modulus } => format!(
                "def {name}(n):\n    x, y = {first}, {second}\n    for _ in range(n):\n        \
                 x, y = y, ({a} * y + {b} * x) % {modulus}\n    return x % {modulus}\n"
            ),
        }
    }

    fn arguments(&self, random: &mut Random) -> Vec<Value> {
        match self {
            Self::Chain(chain) => chain.arguments(random, CASES),
            Self::Recurrence { .. } => (0..CASES as i64)
                .map(|place| json!(if place < 4 { place } else { random.range(4, 1000) }))
                .collect(),
        }
    }

    /// A function that differs for some argument.
    fn mistaken(&self, arguments: &[Value]) -> Self {
        match self {
            Self::Chain(chain) => Self::Chain(chain.mistaken(arguments).unwrap_or_else(|| chain.clone())),
            Self::Recurrence { first, second, a, b, modulus } => {
                Self::Recurrence { first: first + 1, second: *second, a: *a, b: *b, modulus: *modulus }
            }
        }
    }
}

/// A function with the arguments it is tried with, of which the first ones are shown.
pub(crate) struct PythonFunction {
    name: String,
    function: Function,
    arguments: Vec<Value>,
}

impl PythonFunction {
    fn draw_once(random: &mut Random, difficulty: u32) -> Self {
        let length = difficulty as usize;
        let function = match random.index(5) {
            0 | 1 => Function::Chain(Chain::draw(random, Kind::Numbers, length)),
            2 | 3 => Function::Chain(Chain::draw(random, Kind::Text, length)),
            _ => Function::Recurrence {
                first: random.range(0, 4),
                second: random.range(1, 9),
                a: random.range(1, 1 + i64::from(difficulty)),
                b: random.range(1, 4),
                modulus: random.range(50, 1000),
            },
        };
        let arguments = function.arguments(random);
        Self { name: made_up(random, 2), function, arguments }
    }

    /// How many examples the prompt shows: the empty argument, and some more.
    const SHOWN: usize = 3;

    fn block(&self, function: &Function) -> String {
        format!("```python\n{}```", function.python(&self.name))
    }
}

impl Problem for PythonFunction {
    const NAME: &'static str = "python_function";
    const SUMMARY: &'static str = "write a Python function; it is tried with arguments that are not shown";
    const MAX_DIFFICULTY: u32 = 6;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        loop {
            let drawn = Self::draw_once(random, difficulty);
            // Every step should matter for some argument, if only so that mistakes are seen.
            if let Function::Chain(chain) = &drawn.function
                && chain.mistaken(&drawn.arguments).is_none()
            {
                continue;
            }
            return drawn;
        }
    }

    fn prompt(&self) -> String {
        let steps = match &self.function {
            Function::Chain(chain) => format!("\n{}", chain.told()),
            Function::Recurrence { .. } => String::new(),
        };
        let example =
            |argument: &Value| format!("{}({argument}) == {}\n", self.name, self.function.apply(argument));
        format!(
            "Write a Python function `{}` that {}{steps}\nExamples:\n{}Answer with the function in a code block.",
            self.name,
            self.function.told(),
            self.arguments[..Self::SHOWN].iter().map(example).collect::<String>(),
        )
    }

    fn answer(&self) -> String {
        self.block(&self.function)
    }

    fn visible(&self) -> String {
        self.answer()
    }

    fn thinking(&self) -> String {
        match &self.function {
            Function::Chain(chain) => format!("One line for each of the {} steps.", chain.steps.len()),
            Function::Recurrence { .. } => "A loop with the last two values, from f(0) on.".to_owned(),
        }
    }

    fn wrong_answers(&self) -> Vec<String> {
        let right = self.answer();
        vec![
            self.block(&self.function.mistaken(&self.arguments)),
            right.replace("return", "retrun"),
            right.replace("return", "print"),
            right.replace("def ", "def not_"),
            format!("{}print('[1]')\nraise SystemExit\n```", right.trim_end_matches("```")),
            self.function.python(&self.name),
        ]
    }

    fn expected(&self) -> Value {
        json!(self.function.python(&self.name))
    }

    fn verify(instance: &Instance, response: &str) -> Verdict {
        let code = match code(response) {
            Ok(code) => code,
            Err(verdict) => return verdict,
        };
        let Some(problem) = Self::redraw(instance).filter(|problem| problem.expected() == instance.answer)
        else {
            return Verdict::wrong("malformed instance: it is not what its seed gives");
        };
        let case = |argument: Value| Case {
            module: MODULE,
            function: problem.name.clone(),
            expected: problem.function.apply(&argument),
            argument,
        };
        let cases: Vec<Case> = problem.arguments.iter().cloned().map(case).collect();
        judge_functions([(format!("{MODULE}.py"), code.to_owned())], &cases)
    }

    fn runs_programs() -> bool {
        true
    }
}
