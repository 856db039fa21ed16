//! Tools that are part of the program. They read and never change anything.

mod calculator;
mod clock;
mod expression;
mod number;

use rmcp::model::JsonObject;

use crate::arguments;

/// A built-in tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    /// Works out expressions.
    Calculator,
    /// Tells the time.
    Clock,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 2] = [Builtin::Calculator, Builtin::Clock];

    /// What it is called by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calculator => "calculator",
            Self::Clock => "clock",
        }
    }

    /// What it does, for the model.
    pub fn description(self) -> &'static str {
        match self {
            Self::Calculator => {
                "Works out an arithmetic expression with + - * / ^ % and parentheses, functions such as sqrt, ln, \
                 sin, round, min and max, and the constants pi and e. Whole numbers are exact up to 38 digits."
            }
            Self::Clock => "Tells the date, the day of the week and the time.",
        }
    }

    /// The schema of its arguments.
    pub fn schema(self) -> JsonObject {
        match self {
            Self::Calculator => arguments::schema_of::<calculator::Arguments>(),
            Self::Clock => arguments::schema_of::<clock::Arguments>(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn call(self, mut given: JsonObject) -> Result<String, String> {
        arguments::check(&self.schema(), &mut given)?;
        let given = serde_json::Value::Object(given);
        match self {
            Self::Calculator => {
                calculator::run(&serde_json::from_value(given).map_err(|error| error.to_string())?)
            }
            Self::Clock => clock::run(&serde_json::from_value(given).map_err(|error| error.to_string())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_is_checked_against_the_schema() {
        let call =
            |arguments: serde_json::Value| Builtin::Calculator.call(arguments.as_object().unwrap().clone());
        assert_eq!(call(json!({ "expression": "2 * (3 + 4)" })), Ok("14".to_owned()));
        assert_eq!(call(json!({})), Err("`expression` is required".to_owned()));
    }
}
