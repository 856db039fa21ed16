//! The clock.

use chrono::{FixedOffset, Local, Utc};
use schemars::JsonSchema;
use serde::Deserialize;

const FORMAT: &str = "%A, %Y-%m-%d %H:%M:%S %:z";

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// Difference from UTC, such as +02:00; without it the time is that of this machine
    utc_offset: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<String, String> {
    let Some(offset) = arguments.utc_offset.as_deref().filter(|offset| !offset.trim().is_empty()) else {
        return Ok(Local::now().format(FORMAT).to_string());
    };
    let offset: FixedOffset = match offset.trim() {
        "Z" | "UTC" => Ok(Utc::now().fixed_offset().timezone()),
        offset => offset.parse(),
    }
    .map_err(|_| format!("`utc_offset` must be a difference from UTC such as +02:00; got {offset:?}"))?;
    Ok(Utc::now().with_timezone(&offset).format(FORMAT).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: &str) -> Result<String, String> {
        run(&Arguments { utc_offset: Some(offset.to_owned()) })
    }

    #[test]
    fn the_time_is_told_at_the_offset_asked_for() {
        for (offset, end) in [("+02:00", " +02:00"), ("-0930", " -09:30"), ("UTC", " +00:00")] {
            let time = at(offset).unwrap();
            assert!(time.ends_with(end), "{time}");
            let read =
                chrono::DateTime::parse_from_str(time.split_once(", ").unwrap().1, "%Y-%m-%d %H:%M:%S %:z");
            assert!((Utc::now() - read.unwrap().to_utc()).num_seconds().abs() <= 5, "{time}");
        }
        assert!(at("Berlin").unwrap_err().contains("Berlin"));
    }
}
