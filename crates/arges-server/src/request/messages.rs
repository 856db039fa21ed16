//! The messages of a chat request, checked for what the API allows. Bringing them into the shape a template
//! reads is `arges-text`'s.

use serde_json::{Map, Value};

use crate::error::ApiError;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Checks the messages of the request field `param`.
///
/// # Errors
/// 400 with the path of the wrong message, field or part.
pub(crate) fn check(param: &'static str, messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid_param(param, format!("`{param}` must hold at least one message.")));
    }
    messages.iter().enumerate().try_for_each(|(index, message)| check_message(param, index, message))
}

fn check_message(param: &str, index: usize, message: &Value) -> Result<(), ApiError> {
    let at = |field: &str| format!("{param}[{index}]{field}");
    let Value::Object(message) = message else {
        return Err(ApiError::invalid_param(at(""), "A message must be a JSON object."));
    };
    match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => {
            check_content(&at(".content"), role, message)
        }
        Some(role) => {
            let message = format!("{role} is not a role; roles are {}.", ROLES.join(", "));
            Err(ApiError::invalid_param(at(".role"), message))
        }
        None => Err(ApiError::invalid_param(at(".role"), "A message needs a `role`.")),
    }
}

fn check_content(at: &str, role: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        // What the assistant said may be tool calls alone, and templates skip its parts that are no text.
        None | Some(Value::Null | Value::Array(_)) if role == "assistant" => Ok(()),
        Some(Value::Array(parts)) if parts.is_empty() => {
            Err(ApiError::invalid_param(at, "A list of content parts must not be empty."))
        }
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().try_for_each(|(index, part)| check_part(&format!("{at}[{index}]"), part))
        }
        None | Some(Value::Null) => {
            Err(ApiError::invalid_param(at, format!("A message of role `{role}` needs `content`.")))
        }
        Some(_) => Err(ApiError::invalid_param(at, "`content` must be a string or a list of content parts.")),
    }
}

fn check_part(at: &str, part: &Value) -> Result<(), ApiError> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") if part.get("text").is_some_and(Value::is_string) => Ok(()),
        Some("text") => {
            Err(ApiError::invalid_param(format!("{at}.text"), "A text part needs a string `text`."))
        }
        Some(kind) => {
            let message =
                format!("Content parts of type `{kind}` are not supported: the model reads text only.");
            Err(ApiError::unsupported(at, message))
        }
        None => Err(ApiError::invalid_param(at, "A content part must be an object with a `type`.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn param_of(messages: Value) -> String {
        let messages: Vec<Value> = serde_json::from_value(messages).unwrap();
        check("messages", &messages)
            .expect_err("the messages were accepted")
            .param()
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn a_conversation_of_all_roles_passes() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let messages = [
            json!({"role": "developer", "content": "Be brief."}),
            json!({"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "1", "content": "42"}),
            json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
        ];
        assert_eq!(check("messages", &messages), Ok(()));
    }

    #[test]
    fn a_wrong_message_is_named_by_its_path() {
        assert_eq!(param_of(json!([])), "messages");
        assert_eq!(param_of(json!(["hi"])), "messages[0]");
        assert_eq!(param_of(json!([{"content": "x"}])), "messages[0].role");
        assert_eq!(param_of(json!([{"role": "robot", "content": "x"}])), "messages[0].role");
        let user = json!({"role": "user", "content": "x"});
        assert_eq!(param_of(json!([user, {"role": "user"}])), "messages[1].content");
        assert_eq!(param_of(json!([{"role": "user", "content": 3}])), "messages[0].content");
        assert_eq!(param_of(json!([{"role": "user", "content": []}])), "messages[0].content");
        assert_eq!(param_of(json!([{"role": "user", "content": ["x"]}])), "messages[0].content[0]");
        assert_eq!(
            param_of(json!([{"role": "user", "content": [{"type": "text"}]}])),
            "messages[0].content[0].text"
        );
    }

    #[test]
    fn a_picture_is_refused_as_unsupported() {
        let picture = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
        let error = check("messages", &[picture]).unwrap_err();
        assert_eq!(
            (error.param(), error.code()),
            (Some("messages[0].content[0]"), Some("unsupported_value"))
        );
    }
}
