//! Values of expressions in `not`, `and` and `or`; a line of the trace does all operators at once whose operands
//! are known.

use super::{Drawn, Problem};
use crate::Random;

pub(crate) static TASK: Drawn<BooleanExpressions> = Drawn::NEW;

/// Expressions to evaluate.
pub(crate) struct BooleanExpressions {
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    Value(bool),
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
}

use Expression::{And, Not, Or, Value};

impl Expression {
    /// Draws an expression of so many values that comes out as `value`; its operator is not `outer`'s.
    fn draw(random: &mut Random, values: usize, value: bool, outer: Option<bool>) -> Self {
        if values == 1 {
            return match random.chance(1, 3) {
                true => Not(Box::new(Value(!value))),
                false => Value(value),
            };
        }
        if random.chance(1, 6) {
            return match Self::draw(random, values, !value, None) {
                // Two in a row would only be noise.
                Not(inner) => *inner,
                inner => Not(Box::new(inner)),
            };
        }
        let is_and = outer.map_or_else(|| random.chance(1, 2), |outer| !outer);
        let count = if values > 2 && random.chance(1, 3) { 3 } else { 2 };
        let mut sizes = vec![1; count];
        (count..values).for_each(|_| sizes[random.index(count)] += 1);
        // A conjunction is true if all parts are, false if one is false; a disjunction the other way round.
        let sure = random.index(count);
        let parts = sizes.into_iter().enumerate().map(|(place, size)| {
            let free = value != is_and && place != sure;
            let value = if free { random.chance(1, 2) } else { value };
            Self::draw(random, size, value, Some(is_and))
        });
        let parts = parts.collect();
        if is_and { And(parts) } else { Or(parts) }
    }

    /// The expression after all operators whose operands are values.
    fn reduced(&self) -> Self {
        let values = |parts: &[Self]| {
            let value = |part: &Self| if let Value(value) = part { Some(*value) } else { None };
            parts.iter().map(value).collect::<Option<Vec<bool>>>()
        };
        let reduce = |parts: &[Self]| parts.iter().map(Self::reduced).collect();
        match self {
            Value(value) => Value(*value),
            Not(inner) => match &**inner {
                Value(value) => Value(!value),
                inner => Not(Box::new(inner.reduced())),
            },
            And(parts) => values(parts)
                .map_or_else(|| And(reduce(parts)), |values| Value(values.into_iter().all(|v| v))),
            Or(parts) => {
                values(parts).map_or_else(|| Or(reduce(parts)), |values| Value(values.into_iter().any(|v| v)))
            }
        }
    }

    /// All stages, from the expression itself to its value.
    fn stages(&self) -> Vec<Self> {
        let mut stages = vec![self.clone()];
        while let Some(last) = stages.last().filter(|last| !matches!(last, Value(_))) {
            stages.push(last.reduced());
        }
        stages
    }

    fn value(&self) -> bool {
        match self {
            Value(value) => *value,
            Not(inner) => !inner.value(),
            And(parts) => parts.iter().all(Self::value),
            Or(parts) => parts.iter().any(Self::value),
        }
    }

    /// The text, with brackets around everything below an operator that is neither a value nor a negated value.
    fn text(&self) -> String {
        let below = |part: &Self| match part {
            Value(_) | Not(_) => part.text(),
            And(_) | Or(_) => format!("({})", part.text()),
        };
        let join = |parts: &[Self], word: &str| parts.iter().map(below).collect::<Vec<_>>().join(word);
        match self {
            Value(true) => "True".to_owned(),
            Value(false) => "False".to_owned(),
            Not(inner) => format!("not {}", below(inner)),
            And(parts) => join(parts, " and "),
            Or(parts) => join(parts, " or "),
        }
    }
}

impl Problem for BooleanExpressions {
    const NAME: &'static str = "boolean_expressions";
    const SUMMARY: &'static str = "evaluate expressions of True, False, not, and, or";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        let expressions = (0..1 + level / 3).map(|_| {
            let values = 1 + level + random.index(2);
            let value = random.chance(1, 2);
            Expression::draw(random, values, value, None)
        });
        Self { expressions: expressions.collect() }
    }

    fn prompt(&self) -> String {
        let texts: Vec<String> = self.expressions.iter().map(Expression::text).collect();
        match &texts[..] {
            [one] => format!(
                "What is the value of this expression?\n{one}\nEnd with `Answer: True` or `Answer: False`."
            ),
            _ => format!(
                "What are the values of these expressions?\n{}\n\
                 End with a line `Answer: ...`, where ... is True or False for each, in order, with commas between.",
                texts.join("\n")
            ),
        }
    }

    fn answer(&self) -> String {
        let values: Vec<String> = self.expressions.iter().map(|e| Value(e.value()).text()).collect();
        values.join(", ")
    }

    fn thinking(&self) -> String {
        let stages = self.expressions.iter().map(|expression| {
            expression.stages().iter().map(Expression::text).collect::<Vec<_>>().join("\n= ")
        });
        stages.collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let right: Vec<bool> = self.expressions.iter().map(Expression::value).collect();
        let text =
            |values: &[bool]| values.iter().map(|value| Value(*value).text()).collect::<Vec<_>>().join(", ");
        let flipped = (0..right.len()).map(|place| {
            let mut values = right.clone();
            values[place] = !values[place];
            text(&values)
        });
        flipped.chain([text(&right[1..]), format!("{}, True", text(&right))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_trace_has_the_same_value_as_the_one_before() {
        let inner = And(vec![Value(true), Not(Box::new(Value(true)))]);
        let expression = Or(vec![Not(Box::new(inner)), Value(false)]);
        let stages: Vec<String> = expression.stages().iter().map(Expression::text).collect();
        let expected = [
            "not (True and not True) or False",
            "not (True and False) or False",
            "not False or False",
            "True or False",
            "True",
        ];
        assert_eq!(stages, expected);
        assert!(expression.stages().iter().all(Expression::value));
    }

    #[test]
    fn a_drawn_expression_has_the_value_that_was_asked_for() {
        let mut random = Random::new("test", 0, 1);
        for round in 0..500 {
            let value = round % 2 == 0;
            assert_eq!(Expression::draw(&mut random, 1 + round % 15, value, None).value(), value);
        }
    }
}
