//! The calculator.

use schemars::JsonSchema;
use serde::Deserialize;

use super::expression::evaluate;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The expression, such as (17 + 25) * 3 or sqrt(2) ^ 3
    #[schemars(length(min = 1))]
    expression: String,
}

pub fn run(arguments: &Arguments) -> Result<String, String> {
    evaluate(&arguments.expression).map(|number| number.to_string()).map_err(|error| error.to_string())
}
