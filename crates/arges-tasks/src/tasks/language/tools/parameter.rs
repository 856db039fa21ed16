//! Parameters of made-up tools, and values for them.

use serde_json::{Map, Value, json};

use super::super::words;
use super::vocabulary::{BOOLEANS, ENUMS, INTEGERS, LISTS, NUMBERS, OBJECTS, QUALIFIERS, TEXTS, Text};
use crate::Random;

/// A parameter: its name, what it is in words, and its type.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    /// What stands in the schema; "the {description} is …" is a sentence, but for booleans, which are adjectives.
    pub(super) description: String,
    pub(super) kind: Kind,
    pub(super) required: bool,
    /// What it is if nothing is said.
    pub(super) default: Option<Value>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Text(Text),
    Integer {
        most: i64,
    },
    Number {
        most: i64,
    },
    Boolean,
    Enum(Vec<&'static str>),
    /// A list of items of one kind, which is none with parts.
    List(Box<Kind>),
    Object(Vec<Parameter>),
}

/// How deep objects may nest.
const MAX_DEPTH: u32 = 2;

impl Parameter {
    /// Draws `count` parameters with different names.
    pub(super) fn draw_several(random: &mut Random, difficulty: u32, count: usize, depth: u32) -> Vec<Self> {
        let mut drawn: Vec<Self> = Vec::new();
        while drawn.len() < count {
            let parameter = Self::draw(random, difficulty, depth);
            // A request may speak of a parameter by its name or its description.
            let names = parameter.phrases();
            if !drawn.iter().any(|other| other.phrases().iter().any(|phrase| names.contains(phrase))) {
                drawn.push(parameter);
            }
        }
        drawn
    }

    fn draw(random: &mut Random, difficulty: u32, depth: u32) -> Self {
        // Each type comes with the difficulty: text, integers, enums, numbers and booleans, lists, objects.
        let kinds = match difficulty {
            1 => 6,
            2 => 9,
            3..5 => 12,
            5.. if depth < MAX_DEPTH.min(difficulty / 4) => 15,
            _ => 13,
        };
        let (name, description, kind) = match random.index(kinds) {
            0..4 => {
                let (text, names) = random.choose(&TEXTS);
                let (name, description) = random.choose(names);
                (*name, *description, Kind::Text(*text))
            }
            4 | 5 => {
                let (name, description, most) = *random.choose(&INTEGERS);
                (name, description, Kind::Integer { most })
            }
            6 | 7 => {
                let (name, description, values) = *random.choose(&ENUMS);
                let count = 2 + random.index(values.len() - 2);
                (name, description, Kind::Enum(words::different(random, values, count)))
            }
            8 => {
                let name = *random.choose(&BOOLEANS);
                (name, name, Kind::Boolean)
            }
            9 | 10 => {
                let (name, description, most) = *random.choose(&NUMBERS);
                (name, description, Kind::Number { most })
            }
            11 | 12 => {
                let (name, description, kind) = random.choose(&LISTS);
                (*name, *description, Kind::List(Box::new(kind.clone())))
            }
            _ => {
                let (name, description) = *random.choose(&OBJECTS);
                let count = 1 + random.index(3);
                (name, description, Kind::Object(Self::draw_several(random, difficulty, count, depth + 1)))
            }
        };
        let qualified = difficulty >= 3 && !matches!(kind, Kind::Boolean) && random.chance(1, 4);
        let (before_name, before_description) =
            if qualified { *random.choose(&QUALIFIERS) } else { QUALIFIERS[0] };
        let name = format!("{before_name}{name}");
        // At first the description only repeats the name.
        let description = match difficulty < 4 || random.chance(1, 2) {
            true => name.replace('_', " "),
            false => format!("{before_description}{description}"),
        };
        let required = difficulty == 1 || random.chance(3, 5);
        let mut parameter = Self { name, description, kind, required, default: None };
        let simple = matches!(parameter.kind, Kind::Integer { .. } | Kind::Boolean | Kind::Enum(_));
        if !required && simple && difficulty >= 5 && random.chance(1, 2) {
            parameter.default = Some(parameter.draw_value(random, difficulty));
        }
        parameter
    }

    /// What a request may call it.
    pub(super) fn phrases(&self) -> [String; 2] {
        [self.name.replace('_', " "), self.description.clone()]
    }

    /// The schema of the parameter.
    pub(super) fn schema(&self) -> Value {
        let mut schema = self.kind.schema();
        if let Value::Object(fields) = &mut schema {
            fields.insert("description".to_owned(), json!(self.description));
            if let Some(default) = &self.default {
                fields.insert("default".to_owned(), default.clone());
            }
        }
        schema
    }

    /// A value that fits the schema; objects hold all that is required and some of the rest.
    pub(super) fn draw_value(&self, random: &mut Random, difficulty: u32) -> Value {
        self.kind.draw_value(random, difficulty)
    }
}

impl Kind {
    fn schema(&self) -> Value {
        match self {
            Self::Text(_) => json!({ "type": "string" }),
            Self::Integer { .. } => json!({ "type": "integer" }),
            Self::Number { .. } => json!({ "type": "number" }),
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Enum(values) => json!({ "type": "string", "enum": values }),
            Self::List(items) => json!({ "type": "array", "items": items.schema() }),
            Self::Object(parameters) => object_schema(parameters),
        }
    }

    fn draw_value(&self, random: &mut Random, difficulty: u32) -> Value {
        match self {
            Self::Text(text) => json!(text.draw(random, difficulty)),
            Self::Integer { most: 2100 } => json!(random.range(1950, 2100)),
            Self::Integer { most } => json!(random.range(1, *most)),
            Self::Number { most } => {
                let hundredths = random.range(1, most * 10) * if random.chance(1, 2) { 10 } else { 1 };
                match hundredths % 100 {
                    0 => json!(hundredths / 100),
                    _ => json!(hundredths as f64 / 100.0),
                }
            }
            Self::Boolean => json!(random.chance(1, 2)),
            Self::Enum(values) => json!(random.choose(values)),
            Self::List(items) => {
                let count = 1 + random.index(3);
                (0..count).map(|_| items.draw_value(random, difficulty)).collect()
            }
            Self::Object(parameters) => Value::Object(draw_arguments(random, difficulty, parameters)),
        }
    }
}

/// Values for all required parameters and some others, in the order of the parameters.
pub(super) fn draw_arguments(
    random: &mut Random,
    difficulty: u32,
    parameters: &[Parameter],
) -> Map<String, Value> {
    let mut arguments = Map::new();
    for parameter in parameters {
        if parameter.required || random.chance(1, 2) {
            arguments.insert(parameter.name.clone(), parameter.draw_value(random, difficulty));
        }
    }
    // An object without parts could not be asked for.
    if let (true, Some(first)) = (arguments.is_empty(), parameters.first()) {
        arguments.insert(first.name.clone(), first.draw_value(random, difficulty));
    }
    arguments
}

/// The schema of an object of these parameters.
pub(super) fn object_schema(parameters: &[Parameter]) -> Value {
    let properties = parameters.iter().map(|parameter| (parameter.name.clone(), parameter.schema()));
    let required = parameters.iter().filter(|parameter| parameter.required).map(|parameter| &parameter.name);
    json!({
        "type": "object",
        "properties": properties.collect::<Map<_, _>>(),
        "required": required.collect::<Vec<_>>(),
    })
}

fn capitalized(word: &str) -> String {
    word.split_at_checked(1).map_or_else(String::new, |(first, rest)| first.to_uppercase() + rest)
}

impl Text {
    /// A value; the free ones hold stranger characters at higher difficulties.
    fn draw(self, random: &mut Random, difficulty: u32) -> String {
        match self {
            Self::Person => {
                let surname = capitalized(&words::made_up(random, 2));
                format!("{} {surname}", random.choose(&words::NAMES))
            }
            Self::Place => capitalized(&words::made_up(random, 2)),
            Self::Words => {
                let count = 1 + random.index(2 + difficulty as usize / 4);
                let mut chosen: Vec<&str> = (1..count).map(|_| *random.choose(&words::ADJECTIVES)).collect();
                chosen.push(*random.choose(&words::NOUNS));
                let text = chosen.join(" ");
                match (difficulty, random.index(5)) {
                    (9.., 2) => format!("{text} \"{}\"", words::made_up(random, 2)),
                    (8.., 0) => format!("<b>{text}</b> & {{{}}}", random.range(1, 99)),
                    (8.., 1) => format!("{text}: {}% – «{}»", random.range(1, 99), words::made_up(random, 1)),
                    _ => text,
                }
            }
            Self::Date => {
                format!("20{}-{:02}-{:02}", random.range(24, 39), random.range(1, 12), random.range(1, 28))
            }
            Self::Time => format!("{:02}:{:02}", random.range(0, 23), 5 * random.range(0, 11)),
            Self::Code => match random.index(3) {
                0 => random.range(1000, 99_999).to_string(),
                1 => format!("{}{}", letters(random, 2), random.range(100, 9999)),
                _ => format!("{}-{}", letters(random, 3), random.range(10, 999)),
            },
            Self::Email => {
                let name = random.choose(&words::NAMES).to_lowercase();
                format!("{name}@{}.org", random.choose(&words::NOUNS))
            }
            Self::Path => {
                let (folder, file) = (random.choose(&words::NOUNS), random.choose(&words::NOUNS));
                match difficulty >= 7 && random.chance(1, 3) {
                    true => format!("C:\\{folder}\\{file}.txt"),
                    false => format!("/{folder}/{file}.txt"),
                }
            }
        }
    }
}

fn letters(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| char::from(b'A' + random.below(26) as u8)).collect()
}
