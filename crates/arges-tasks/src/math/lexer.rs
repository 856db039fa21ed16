//! LaTeX or plain text to tokens.

/// Tokens of an answer at most.
const MAX_TOKENS: usize = 500;

/// Most digits of a number: more do not fit a fraction.
const MAX_DIGITS: usize = 38;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Digits before the point, and after it where there is one.
    Number {
        whole: String,
        decimals: Option<String>,
    },
    /// A letter, or the name of a Greek one.
    Variable(String),
    Pi,
    Euler,
    Imaginary,
    Infinity,
    EmptySet,
    Frac,
    Binom,
    Sqrt,
    Function(Function),
    /// A unit of measure, or a text that stands for one.
    Unit,
    Plus,
    Minus,
    PlusMinus,
    Times,
    Over,
    Power,
    Subscript,
    Percent,
    Factorial,
    Bar,
    Comma,
    Equals,
    Union,
    /// `(`, `[` or `{`; the last for a set.
    Open(char),
    /// `)`, `]` or `}`; the last for a set.
    Close(char),
    /// Braces that only hold things together, or a set in plain text.
    OpenGroup,
    CloseGroup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Ln,
    Log,
    Exp,
}

/// What is replaced before an answer is read: spacing and sizes, which mean nothing, and other names of one thing.
const REPLACEMENTS: &[(&str, &str)] = &[
    ("\\left", ""),
    ("\\right", ""),
    ("\\displaystyle", ""),
    ("\\!", ""),
    ("\\,", ""),
    ("{,}", ""),
    ("\\;", " "),
    ("\\:", " "),
    ("\\ ", " "),
    ("\\quad", " "),
    ("~", " "),
    ("\\$", ""),
    ("$", ""),
    ("\\%", "%"),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\degree", ""),
    ("°", ""),
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\dbinom", "\\binom"),
    ("\u{2212}", "-"),
    ("\u{2013}", "-"),
];

/// The answer without spacing commands, dollar signs and degrees.
pub(super) fn plain(answer: &str) -> String {
    let replaced = REPLACEMENTS.iter().fold(answer.to_owned(), |text, (from, to)| text.replace(from, to));
    replaced.trim().trim_end_matches('.').trim().to_owned()
}

/// Whether two plain answers are the same but for spaces and text commands.
pub(super) fn same_text(a: &str, b: &str) -> bool {
    let (a, b) = (bare_text(a), bare_text(b));
    !a.is_empty() && a == b
}

/// The answer without spaces, and without the command around it if it is one of text.
pub(super) fn bare_text(answer: &str) -> String {
    let inner = TEXT_COMMANDS.iter().find_map(|command| {
        let rest = answer.strip_prefix('\\')?.strip_prefix(command)?.trim_start();
        rest.strip_prefix('{')?.strip_suffix('}').filter(|inner| !inner.contains(['{', '}']))
    });
    inner.unwrap_or(answer).split_whitespace().collect()
}

const TEXT_COMMANDS: &[&str] =
    &["textbf", "textit", "textrm", "text", "mbox", "mathrm", "mathbf", "operatorname"];

/// Words for units of measure, which do not count. Names of one letter would be variables.
const UNITS: &[&str] = &[
    "cents",
    "cent",
    "cm",
    "cubic",
    "days",
    "day",
    "degrees",
    "degree",
    "dollars",
    "dollar",
    "feet",
    "foot",
    "ft",
    "gallons",
    "gallon",
    "grams",
    "gram",
    "hours",
    "hour",
    "inches",
    "inch",
    "kg",
    "kilometers",
    "km",
    "lb",
    "liters",
    "liter",
    "meters",
    "meter",
    "miles",
    "mile",
    "minutes",
    "minute",
    "ml",
    "mm",
    "months",
    "month",
    "mph",
    "ounces",
    "per",
    "pounds",
    "pound",
    "radians",
    "seconds",
    "second",
    "sq",
    "square",
    "squared",
    "units",
    "unit",
    "weeks",
    "week",
    "yards",
    "yard",
    "years",
    "year",
];

const GREEK: &[&str] = &[
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "rho", "sigma", "tau", "phi",
    "omega",
];

/// The tokens of a plain answer; `None` for what is not understood.
pub(super) fn tokens(answer: &str) -> Option<Vec<Token>> {
    let chars: Vec<char> = answer.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, depth: 0, tokens: Vec::new() };
    while lexer.at < chars.len() {
        lexer.step()?;
        if lexer.tokens.len() > MAX_TOKENS {
            return None;
        }
    }
    Some(lexer.tokens)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    /// Brackets that are open; within them a comma always separates.
    depth: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Takes the characters from here on that satisfy the predicate.
    fn take_while(&mut self, holds: impl Fn(char) -> bool) -> String {
        let taken: String = self.chars[self.at..].iter().copied().take_while(|c| holds(*c)).collect();
        self.at += taken.chars().count();
        taken
    }

    fn step(&mut self) -> Option<()> {
        let c = self.peek(0)?;
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|next| next.is_ascii_digit())) {
            return self.number();
        }
        if c.is_ascii_alphabetic() {
            let word = self.take_while(|c| c.is_ascii_alphabetic());
            return self.word(&word);
        }
        self.at += 1;
        let token = match c {
            c if c.is_whitespace() => return Some(()),
            '\\' => return self.command(),
            '+' => Token::Plus,
            '-' => Token::Minus,
            '±' => Token::PlusMinus,
            '*' | '×' | '·' | '⋅' => Token::Times,
            '/' | '÷' => Token::Over,
            '^' => Token::Power,
            '_' => Token::Subscript,
            '%' => Token::Percent,
            '!' => Token::Factorial,
            '|' => Token::Bar,
            ',' | ';' => Token::Comma,
            '=' => Token::Equals,
            'π' => Token::Pi,
            '∞' => Token::Infinity,
            '√' => Token::Sqrt,
            '∪' => Token::Union,
            '∅' => Token::EmptySet,
            '(' | '[' => self.open(Token::Open(c)),
            ')' | ']' => self.close(Token::Close(c)),
            '{' => self.open(Token::OpenGroup),
            '}' => self.close(Token::CloseGroup),
            _ => return None,
        };
        self.tokens.push(token);
        Some(())
    }

    fn open(&mut self, token: Token) -> Token {
        self.depth += 1;
        token
    }

    fn close(&mut self, token: Token) -> Token {
        self.depth = self.depth.saturating_sub(1);
        token
    }

    /// A number: digits, perhaps in groups of three with commas, perhaps with decimals or a power of ten.
    fn number(&mut self) -> Option<()> {
        let mut whole = self.take_while(|c| c.is_ascii_digit());
        if self.depth == 0 && (1..=3).contains(&whole.len()) {
            while let Some(group) = self.group_of_three() {
                whole += &group;
            }
        }
        let mut decimals = None;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            decimals = Some(self.take_while(|c| c.is_ascii_digit()));
        }
        if whole.len() + decimals.as_ref().map_or(0, String::len) > MAX_DIGITS {
            return None;
        }
        self.tokens.push(Token::Number { whole, decimals });
        self.exponent();
        Some(())
    }

    /// Takes a comma and three digits, no more.
    fn group_of_three(&mut self) -> Option<String> {
        let ahead: Vec<char> = self.chars[self.at..].iter().copied().take(5).collect();
        let [',', digits @ ..] = ahead.as_slice() else { return None };
        if digits.len() < 3
            || !digits[..3].iter().all(char::is_ascii_digit)
            || digits.get(3).is_some_and(char::is_ascii_digit)
        {
            return None;
        }
        self.at += 4;
        Some(digits[..3].iter().collect())
    }

    /// `e3` or `e-3` right after a number.
    fn exponent(&mut self) {
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if !matches!(self.peek(0), Some('e' | 'E'))
            || !self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit())
        {
            return;
        }
        let negative = self.peek(1) == Some('-');
        self.at += 1 + sign;
        let whole = self.take_while(|c| c.is_ascii_digit());
        let ten = Token::Number { whole: "10".to_owned(), decimals: None };
        self.tokens.extend([Token::Times, ten, Token::Power]);
        self.tokens.extend(negative.then_some(Token::Minus));
        self.tokens.push(Token::Number { whole, decimals: None });
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let lower = word.to_ascii_lowercase();
        let token = match lower.as_str() {
            "pi" => Token::Pi,
            "inf" | "infinity" | "infty" => Token::Infinity,
            "sqrt" => Token::Sqrt,
            "sin" => Token::Function(Function::Sin),
            "cos" => Token::Function(Function::Cos),
            "tan" => Token::Function(Function::Tan),
            "ln" => Token::Function(Function::Ln),
            "log" => Token::Function(Function::Log),
            "exp" => Token::Function(Function::Exp),
            "and" | "or" => Token::Comma,
            "percent" => Token::Percent,
            unit if UNITS.contains(&unit) => Token::Unit,
            _ if word.len() <= 3 => {
                self.tokens.extend(word.chars().map(letter));
                return Some(());
            }
            _ => return None,
        };
        self.push_separating(token);
        Some(())
    }

    /// Adds a token; a comma only where there is none before it, as in `1, 2, and 3`.
    fn push_separating(&mut self, token: Token) {
        if token != Token::Comma || self.tokens.last() != Some(&Token::Comma) {
            self.tokens.push(token);
        }
    }

    /// What follows a backslash.
    fn command(&mut self) -> Option<()> {
        let name = self.take_while(|c| c.is_ascii_alphabetic());
        let token = match name.as_str() {
            "" => {
                let c = self.peek(0)?;
                self.at += 1;
                match c {
                    '{' => self.open(Token::Open('{')),
                    '}' => self.close(Token::Close('}')),
                    '(' | ')' | '[' | ']' => return Some(()),
                    '|' => Token::Bar,
                    _ => return None,
                }
            }
            "frac" => Token::Frac,
            "binom" => Token::Binom,
            "sqrt" => Token::Sqrt,
            "pi" => Token::Pi,
            "infty" => Token::Infinity,
            "cdot" | "times" => Token::Times,
            "div" => Token::Over,
            "pm" => Token::PlusMinus,
            "cup" => Token::Union,
            "emptyset" | "varnothing" => Token::EmptySet,
            "lbrace" => self.open(Token::Open('{')),
            "rbrace" => self.close(Token::Close('}')),
            "sin" | "cos" | "tan" | "ln" | "log" | "exp" => return self.word(&name),
            name if GREEK.contains(&name) => Token::Variable(name.to_owned()),
            name if TEXT_COMMANDS.contains(&name) => return self.text(),
            _ => return None,
        };
        self.tokens.push(token);
        Some(())
    }

    /// The braces after a command of text: a letter is a variable, `and` separates, all else is a unit.
    fn text(&mut self) -> Option<()> {
        self.take_while(char::is_whitespace);
        if self.peek(0) != Some('{') {
            return None;
        }
        self.at += 1;
        let inside = self.take_while(|c| c != '{' && c != '}');
        if self.peek(0) != Some('}') {
            return None;
        }
        self.at += 1;
        let inside = inside.trim().trim_matches(['(', ')', ',', '.']).trim();
        let mut letters = inside.chars();
        let token = match (inside, letters.next(), letters.next()) {
            ("and" | "or", ..) => Token::Comma,
            (_, Some(c), None) if c.is_ascii_alphabetic() => letter(c),
            (_, None, _) => return Some(()),
            _ => Token::Unit,
        };
        self.push_separating(token);
        Some(())
    }
}

fn letter(c: char) -> Token {
    match c {
        'e' => Token::Euler,
        'i' => Token::Imaginary,
        c => Token::Variable(c.to_string()),
    }
}
