//! How much a model may think.

use super::fields::in_range;
use crate::error::ApiError;

/// Tokens of thinking that an effort stands for; `None` is as many as the model likes. The longest that M1 was
/// trained for are 40,000 and 80,000.
const EFFORTS: [(&str, Option<usize>); 6] = [
    ("none", Some(0)),
    ("minimal", Some(512)),
    ("low", Some(2048)),
    ("medium", Some(12_000)),
    ("high", Some(40_000)),
    ("xhigh", None),
];

/// The budget of a request that names tokens, or an effort in the field `effort_param`. The tokens win.
///
/// # Errors
/// 400 for a negative budget or an effort there is not.
pub(crate) fn budget(
    tokens: Option<i64>,
    effort: Option<&str>,
    effort_param: &'static str,
) -> Result<Option<usize>, ApiError> {
    let tokens = in_range("thinking_budget", tokens, 0..=i64::MAX)?;
    let effort = effort.map(|effort| {
        EFFORTS.iter().find(|(name, _)| *name == effort).map(|(_, tokens)| *tokens).ok_or_else(|| {
            let names: Vec<&str> = EFFORTS.iter().map(|(name, _)| *name).collect();
            let message = format!("`{effort_param}` must be one of {}, not {effort:?}.", names.join(", "));
            ApiError::invalid_param(effort_param, message)
        })
    });
    let effort = effort.transpose()?.flatten();
    Ok(tokens.map(|tokens| tokens as usize).or(effort))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_win_over_an_effort_and_both_may_be_missing() {
        let of = |tokens, effort| budget(tokens, effort, "reasoning_effort");
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(Some(7), Some("none")), Ok(Some(7)));
        assert_eq!(of(None, Some("none")), Ok(Some(0)));
        assert_eq!(of(None, Some("xhigh")), Ok(None));
        assert!(of(None, Some("low")).unwrap() < of(None, Some("high")).unwrap());
        assert_eq!(of(Some(-1), None).unwrap_err().param(), Some("thinking_budget"));
        assert_eq!(of(None, Some("extreme")).unwrap_err().param(), Some("reasoning_effort"));
    }
}
