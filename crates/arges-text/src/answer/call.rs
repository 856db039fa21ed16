//! The JSON object of one call.

use super::json::{JsonReader, is_space};

/// Longest key and longest name, as they are written, in bytes.
const MAX_KEY: usize = 64;
const MAX_NAME: usize = 1024;

/// Reads `{"name": …, "arguments": {…}}`, the members in either order and the second not always there.
#[derive(Debug, Clone)]
pub(super) struct CallReader {
    state: State,
    /// Reads the string or object that was begun last.
    json: JsonReader,
    /// The key or name being read, as it is written.
    raw: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    has_arguments: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The opening brace.
    Start,
    FirstKey,
    NextKey,
    Key,
    Colon(Field),
    Value(Field),
    Name,
    Arguments,
    CommaOrEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
}

/// What a character of the object gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// The object is certain to be a call: its name, and the arguments so far.
    Start { name: String, arguments: String },
    /// The character is one of the arguments'.
    Argument,
    /// The object has ended; the name of a call without arguments.
    End(Option<String>),
}

/// The object is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoCall;

impl CallReader {
    pub fn new() -> Self {
        Self {
            state: State::Start,
            json: JsonReader::new(),
            raw: String::new(),
            name: None,
            early: None,
            has_arguments: false,
        }
    }

    /// Takes the next character.
    ///
    /// # Errors
    /// A character with which the object is no JSON or no call. What was given out before stays valid.
    pub fn push(&mut self, c: char) -> Result<Step, NoCall> {
        let (next, step) = match self.state {
            State::Key => return self.key(c),
            State::Name => return self.name(c),
            State::Arguments => return self.argument(c),
            state if is_space(c) && state != State::Start => (state, Step::More),
            State::Start if c == '{' => (State::FirstKey, Step::More),
            State::FirstKey | State::NextKey if c == '"' => (self.begin(State::Key, c)?, Step::More),
            State::Colon(field) if c == ':' => (State::Value(field), Step::More),
            State::Value(Field::Name) if c == '"' => (self.begin(State::Name, c)?, Step::More),
            State::Value(Field::Arguments) if c == '{' => {
                self.has_arguments = true;
                let step = match &self.name {
                    Some(name) => Step::Start { name: name.clone(), arguments: String::from(c) },
                    None => {
                        self.early = Some(String::from(c));
                        Step::More
                    }
                };
                (self.begin(State::Arguments, c)?, step)
            }
            State::CommaOrEnd if c == ',' => (State::NextKey, Step::More),
            State::CommaOrEnd if c == '}' => {
                let name = self.name.take().ok_or(NoCall)?;
                (State::CommaOrEnd, Step::End((!self.has_arguments).then_some(name)))
            }
            _ => return Err(NoCall),
        };
        self.state = next;
        Ok(step)
    }

    /// Begins a string or object with its first character.
    fn begin(&mut self, state: State, c: char) -> Result<State, NoCall> {
        self.json = JsonReader::new();
        self.json.push(c).map_err(|_| NoCall)?;
        self.raw.clear();
        self.raw.push(c);
        Ok(state)
    }

    /// The string that was read, once it ends with `c`.
    fn string(&mut self, c: char, longest: usize) -> Result<Option<String>, NoCall> {
        self.raw.push(c);
        if self.raw.len() > longest {
            return Err(NoCall);
        }
        match self.json.push(c) {
            Ok(true) => serde_json::from_str(&self.raw).map(Some).map_err(|_| NoCall),
            Ok(false) => Ok(None),
            Err(_) => Err(NoCall),
        }
    }

    fn key(&mut self, c: char) -> Result<Step, NoCall> {
        if let Some(key) = self.string(c, MAX_KEY)? {
            self.state = State::Colon(match key.as_str() {
                "name" if self.name.is_none() => Field::Name,
                "arguments" if !self.has_arguments => Field::Arguments,
                _ => return Err(NoCall),
            });
        }
        Ok(Step::More)
    }

    fn name(&mut self, c: char) -> Result<Step, NoCall> {
        let Some(name) = self.string(c, MAX_NAME)? else { return Ok(Step::More) };
        if name.is_empty() {
            return Err(NoCall);
        }
        self.name = Some(name.clone());
        self.state = State::CommaOrEnd;
        Ok(self.early.take().map_or(Step::More, |arguments| Step::Start { name, arguments }))
    }

    fn argument(&mut self, c: char) -> Result<Step, NoCall> {
        if self.json.push(c).map_err(|_| NoCall)? {
            self.state = State::CommaOrEnd;
        }
        match &mut self.early {
            Some(early) => {
                early.push(c);
                Ok(Step::More)
            }
            None => Ok(Step::Argument),
        }
    }
}
