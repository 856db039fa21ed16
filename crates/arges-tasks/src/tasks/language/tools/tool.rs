//! Made-up tools.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::parameter::{Parameter, object_schema};
use crate::Random;

static VERBS: LazyLock<Vec<&str>> =
    LazyLock::new(|| include_str!("../words/tool_verbs.txt").split_whitespace().collect());
static NOUNS: LazyLock<Vec<&str>> =
    LazyLock::new(|| include_str!("../words/tool_nouns.txt").split_whitespace().collect());

/// A tool that does something with a thing.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    pub(super) name: String,
    /// "book a flight"
    pub(super) action: String,
    pub(super) parameters: Vec<Parameter>,
    /// Whether the schema forbids other parameters.
    closed: bool,
}

/// How the names of an instance's functions are put together.
#[derive(Clone, Copy)]
enum Style {
    Snake,
    Camel,
    Kebab,
}

impl Tool {
    /// Draws tools that all do something else; the later ones have things or actions of the first, so that a
    /// glance is not enough.
    pub(super) fn draw_several(random: &mut Random, difficulty: u32, count: usize) -> Vec<Self> {
        let style = match difficulty {
            4.. => *random.choose(&[Style::Snake, Style::Snake, Style::Camel, Style::Kebab]),
            _ => Style::Snake,
        };
        let mut actions: Vec<(&str, &str)> = Vec::new();
        while actions.len() < count {
            let mut action = (*random.choose(&VERBS), *random.choose(&NOUNS));
            if let Some(first) = actions.first().filter(|_| difficulty >= 3) {
                match random.index(3) {
                    0 => action.0 = first.0,
                    1 => action.1 = first.1,
                    _ => {}
                }
            }
            if action.0 != action.1 && !actions.contains(&action) {
                actions.push(action);
            }
        }
        actions.into_iter().map(|action| Self::draw(random, difficulty, style, action)).collect()
    }

    fn draw(random: &mut Random, difficulty: u32, style: Style, (verb, noun): (&str, &str)) -> Self {
        let bare = difficulty >= 3 && random.chance(1, 12);
        let count = if bare { 0 } else { 1 + random.index(1 + difficulty.div_ceil(2) as usize) };
        let name = match style {
            Style::Snake => format!("{verb}_{noun}"),
            Style::Camel => format!("{verb}{}{}", noun[..1].to_uppercase(), &noun[1..]),
            Style::Kebab => format!("{verb}-{noun}"),
        };
        let article = if noun.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
        Self {
            name,
            action: format!("{verb} {article} {noun}"),
            parameters: Parameter::draw_several(random, difficulty, count, 0),
            closed: difficulty >= 4 && random.chance(1, 2),
        }
    }

    /// The tool as a model is given it.
    pub(super) fn json(&self) -> Value {
        let mut parameters = object_schema(&self.parameters);
        if self.closed {
            parameters["additionalProperties"] = json!(false);
        }
        let description = format!("{}{}", self.action[..1].to_uppercase(), &self.action[1..]);
        json!({ "name": self.name, "description": description, "parameters": parameters })
    }
}
