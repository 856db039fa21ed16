//! A shell script over files of a table, run on files that the prompt does not show.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{code, failed, last_words, run};
use crate::sandbox::{Outcome, Program};
use crate::tasks::language::answer::quoted;
use crate::tasks::language::words::{NAMES, NOUNS, different};
use crate::tasks::language::{Drawn, Problem};
use crate::{Instance, Random, Verdict};

pub(crate) static TASK: Drawn<ShellScript> = Drawn::NEW;

/// Longest output that is compared, in bytes.
const MAX_OUTPUT: usize = 1 << 14;

/// A line of the table.
#[derive(Clone, Debug)]
struct Sale {
    seller: &'static str,
    thing: &'static str,
    amount: i64,
}

/// What is asked of the table.
#[derive(Clone, Debug)]
enum Question {
    Count(&'static str),
    Sum(&'static str),
    Sellers(&'static str),
    Largest(usize),
    Totals,
    Above { thing: &'static str, least: i64 },
}

impl Question {
    fn told(&self) -> String {
        match self {
            Self::Count(thing) => format!("prints how many lines have the thing `{thing}`"),
            Self::Sum(thing) => format!("prints the sum of the amounts of the thing `{thing}`"),
            Self::Sellers(thing) => {
                format!(
                    "prints the sellers of the thing `{thing}`, each once, one a line, in alphabetical order"
                )
            }
            Self::Largest(count) => format!(
                "prints the {count} lines with the largest amounts, the largest first; no two amounts are the same"
            ),
            Self::Totals => {
                "prints for each seller a line with the seller, a space and the sum of the amounts, in \
                             alphabetical order of the sellers"
                    .to_owned()
            }
            Self::Above { thing, least } => format!(
                "prints for each seller, in alphabetical order, a line with the seller, a space and how many lines \
                 the seller has of the thing `{thing}` with an amount of at least {least}; sellers without any are \
                 left out"
            ),
        }
    }

    fn script(&self) -> String {
        match self {
            Self::Count(thing) => format!("cat *.txt | awk '$2 == \"{thing}\" {{n++}} END {{print n + 0}}'"),
            Self::Sum(thing) => {
                format!("cat *.txt | awk '$2 == \"{thing}\" {{n += $3}} END {{print n + 0}}'")
            }
            Self::Sellers(thing) => format!("cat *.txt | awk '$2 == \"{thing}\" {{print $1}}' | sort -u"),
            Self::Largest(count) => format!("cat *.txt | sort -k3,3nr | head -n {count}"),
            Self::Totals => {
                "cat *.txt | awk '{s[$1] += $3} END {for (n in s) print n, s[n]}' | sort".to_owned()
            }
            Self::Above { thing, least } => format!(
                "cat *.txt | awk '$2 == \"{thing}\" && $3 >= {least} {{c[$1]++}} END {{for (n in c) print n, c[n]}}' | sort"
            ),
        }
    }

    fn answer(&self, sales: &[Sale]) -> String {
        let of = |thing: &'static str| sales.iter().filter(move |sale| sale.thing == thing);
        let by_seller = |pairs: &mut dyn Iterator<Item = (&'static str, i64)>| {
            let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
            pairs.for_each(|(seller, amount)| *sums.entry(seller).or_default() += amount);
            sums.iter().map(|(seller, sum)| format!("{seller} {sum}\n")).collect::<String>()
        };
        match self {
            Self::Count(thing) => format!("{}\n", of(thing).count()),
            Self::Sum(thing) => format!("{}\n", of(thing).map(|sale| sale.amount).sum::<i64>()),
            Self::Sellers(thing) => {
                let mut sellers: Vec<&str> = of(thing).map(|sale| sale.seller).collect();
                sellers.sort_unstable();
                sellers.dedup();
                sellers.iter().map(|seller| format!("{seller}\n")).collect()
            }
            Self::Largest(count) => {
                let mut sales: Vec<&Sale> = sales.iter().collect();
                sales.sort_unstable_by_key(|sale| -sale.amount);
                sales.iter().take(*count).map(|sale| line(sale)).collect()
            }
            Self::Totals => by_seller(&mut sales.iter().map(|sale| (sale.seller, sale.amount))),
            Self::Above { thing, least } => {
                by_seller(&mut of(thing).filter(|sale| sale.amount >= *least).map(|sale| (sale.seller, 1)))
            }
        }
    }
}

fn line(sale: &Sale) -> String {
    format!("{} {} {}\n", sale.seller, sale.thing, sale.amount)
}

/// A question, and the tables of two runs, of which the prompt shows the first; both are spread over files.
pub(crate) struct ShellScript {
    question: Question,
    tables: [Vec<Sale>; 2],
    files: usize,
}

impl ShellScript {
    fn files(&self, table: usize) -> Vec<(String, String)> {
        let sales = &self.tables[table];
        let part = sales.len().div_ceil(self.files);
        let file = |(place, sales): (usize, &[Sale])| {
            (format!("sales{}.txt", place + 1), sales.iter().map(line).collect::<String>())
        };
        sales.chunks(part).enumerate().map(file).collect()
    }

    fn block(script: &str) -> String {
        format!("```sh\n{script}\n```")
    }

    /// Whether a script prints what it should with the files of a table.
    fn judge(&self, script: &str, table: usize) -> Verdict {
        let mut program = Program::shell(script);
        program.files.extend(self.files(table));
        let report = match run(&program) {
            Ok(report) => report,
            Err(error) => return failed(&error),
        };
        if report.outcome != Outcome::Ok {
            return Verdict::wrong(format!("the script {}{}", report.outcome, last_words(&report)));
        }
        let lines =
            |text: &str| text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        let expected = self.question.answer(&self.tables[table]);
        if report.stdout.len() > MAX_OUTPUT || lines(&report.stdout) != lines(&expected) {
            let which = if table == 0 { "the files shown" } else { "other files" };
            return Verdict::wrong(format!("with {which} it prints {}", quoted(&report.stdout)));
        }
        Verdict::right()
    }
}

impl Problem for ShellScript {
    const NAME: &'static str = "shell_script";
    const SUMMARY: &'static str =
        "write a shell script that asks something of tables in files; others are tried, too";
    const MAX_DIFFICULTY: u32 = 6;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let sellers = different(random, &NAMES, 3 + difficulty as usize);
        let things = different(random, &NOUNS, 3);
        let thing = things[0];
        let question = match random.range(0, i64::from(difficulty)).min(5) {
            0 => Question::Count(thing),
            1 => Question::Sum(thing),
            2 => Question::Sellers(thing),
            3 => Question::Largest(random.range(2, 4) as usize),
            4 => Question::Totals,
            _ => Question::Above { thing, least: random.range(20, 60) },
        };
        let mut table = || {
            let length = 8 + 2 * difficulty as usize;
            let amounts = random.sample(90, length);
            let mut sales: Vec<Sale> = amounts
                .into_iter()
                .map(|amount| Sale {
                    seller: sellers[random.index(sellers.len())],
                    thing: things[random.index(things.len())],
                    amount: amount as i64 + 5,
                })
                .collect();
            // The thing that is asked for is there, with an amount that any question counts.
            sales[0].thing = thing;
            sales[0].amount = 97;
            sales
        };
        let tables = [table(), table()];
        Self { question, tables, files: if difficulty >= 3 { 2 + random.index(2) } else { 1 } }
    }

    fn prompt(&self) -> String {
        let shown =
            self.files(0).into_iter().map(|(name, text)| format!("{name}:\n{text}")).collect::<Vec<_>>();
        let files = if self.files == 1 {
            "the file `sales1.txt`"
        } else {
            "the files `sales1.txt`, `sales2.txt` …"
        };
        format!(
            "Sales are in {files} of the working directory, one a line: seller, thing and amount, with a space \
             between. Write a script for a POSIX shell that {}, of all files together. Here is an example of the \
             files; the script has to work with others, too.\n\n{}\nAnswer with the script in a code block.",
            self.question.told(),
            shown.join("\n"),
        )
    }

    fn answer(&self) -> String {
        Self::block(&self.question.script())
    }

    fn visible(&self) -> String {
        self.answer()
    }

    fn thinking(&self) -> String {
        "All files through cat, then awk or sort.".to_owned()
    }

    fn wrong_answers(&self) -> Vec<String> {
        let shown = self.question.answer(&self.tables[0]);
        let mut wrong = vec![
            Self::block("cat *.txt"),
            Self::block("exit 1"),
            Self::block(&format!("{}; echo more", self.question.script())),
            self.question.script(),
        ];
        if shown != self.question.answer(&self.tables[1]) {
            // What is right with the files that are shown, and only with those.
            wrong.push(Self::block(&format!("cat <<END\n{shown}END")));
        }
        wrong
    }

    fn expected(&self) -> Value {
        json!(self.question.script())
    }

    fn verify(instance: &Instance, response: &str) -> Verdict {
        let script = match code(response) {
            Ok(script) => script,
            Err(verdict) => return verdict,
        };
        let Some(problem) = Self::redraw(instance).filter(|problem| problem.expected() == instance.answer)
        else {
            return Verdict::wrong("malformed instance: it is not what its seed gives");
        };
        match problem.judge(script, 0) {
            verdict if verdict.reward == 1.0 => problem.judge(script, 1),
            verdict => verdict,
        }
    }

    fn runs_programs() -> bool {
        true
    }
}
