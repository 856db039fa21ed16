//! The tools of a request, and whether and which of them are to be called.

use arges_text::grammar::{CallGrammar, ToolShape};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Most tools of one request.
const MAX_TOOLS: usize = 512;

/// Which tools the model may or must call.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    None,
    /// At least one call.
    Required,
    /// One call of this tool.
    Named(String),
    /// Only these, and whether there must be a call.
    Allowed {
        names: Vec<String>,
        required: bool,
    },
}

/// The tools of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tools {
    /// As templates read them: `name`, `description`, `parameters`.
    bare: Vec<Value>,
    shapes: Vec<ToolShape>,
    choice: ToolChoice,
    parallel: bool,
}

impl Tools {
    /// The tools, each an object with `name`, `description`, `parameters` and `strict`, found in the request at
    /// the path that `at` gives for its index.
    ///
    /// # Errors
    /// 400 for a tool without a name or with a schema that is no object, and for a choice of tools there are not.
    pub fn new(
        tools: Vec<Value>,
        choice: ToolChoice,
        parallel: bool,
        at: impl Fn(usize) -> String,
    ) -> Result<Tools, ApiError> {
        if tools.len() > MAX_TOOLS {
            let message = format!("At most {MAX_TOOLS} tools per request, not {}.", tools.len());
            return Err(ApiError::invalid_param("tools", message));
        }
        let (mut bare, mut shapes) = (Vec::with_capacity(tools.len()), Vec::with_capacity(tools.len()));
        for (index, tool) in tools.into_iter().enumerate() {
            let Value::Object(mut tool) = tool else {
                return Err(ApiError::invalid_param(at(index), "A tool must be a JSON object."));
            };
            shapes.push(shape(&mut tool, &at(index))?);
            bare.push(Value::Object(tool));
        }
        let tools = Tools { bare, shapes, choice, parallel };
        tools.check_choice()?;
        Ok(tools)
    }

    fn check_choice(&self) -> Result<(), ApiError> {
        let names: Vec<&String> = match &self.choice {
            ToolChoice::Auto | ToolChoice::None => return Ok(()),
            ToolChoice::Required => Vec::new(),
            ToolChoice::Named(name) => vec![name],
            ToolChoice::Allowed { names, .. } => names.iter().collect(),
        };
        let unknown = names.iter().find(|name| self.shapes.iter().all(|shape| shape.name != ***name));
        let message = match unknown {
            _ if self.shapes.is_empty() => "`tool_choice` wants a call, but there are no `tools`.".to_owned(),
            Some(name) => format!("`tool_choice` names {name:?}, which is not among the `tools`."),
            None => return Ok(()),
        };
        Err(ApiError::invalid_param("tool_choice", message))
    }

    /// Where the tool of this name stands in the request.
    pub fn path_of(&self, name: &str) -> String {
        let index = self.shapes.iter().position(|shape| shape.name == name);
        index.map_or_else(|| "tools".to_owned(), |index| format!("tools[{index}]"))
    }

    /// The tools that the template shows. A model that must not call any is shown none.
    pub fn shown(&self) -> &[Value] {
        if self.choice == ToolChoice::None { &[] } else { &self.bare }
    }

    /// Whether calls are looked for in the answer.
    pub fn may_be_called(&self) -> bool {
        !self.shown().is_empty()
    }

    /// What calls have to keep to; `None` where the model is left to itself. Beside a format the two have to be told
    /// apart in any case.
    pub fn grammar(&self, with_format: bool) -> Option<CallGrammar> {
        if !self.may_be_called() {
            return None;
        }
        let all = self.shapes.iter();
        let of =
            |names: &[String]| all.clone().filter(|shape| names.contains(&shape.name)).cloned().collect();
        let (tools, required, parallel): (Vec<ToolShape>, bool, bool) = match &self.choice {
            ToolChoice::None => return None,
            ToolChoice::Auto => {
                let strict = self.shapes.iter().any(|shape| shape.strict);
                if !(strict || with_format) && self.parallel {
                    return None;
                }
                (self.shapes.clone(), false, self.parallel)
            }
            ToolChoice::Required => (self.shapes.clone(), true, self.parallel),
            ToolChoice::Named(name) => (of(std::slice::from_ref(name)), true, false),
            ToolChoice::Allowed { names, required } => (of(names), *required, self.parallel),
        };
        Some(CallGrammar { tools, required, parallel })
    }
}

/// The tool's shape. What speaks to the server and not to the model is taken out.
fn shape(tool: &mut Map<String, Value>, at: &str) -> Result<ToolShape, ApiError> {
    let name = match tool.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        _ => return Err(ApiError::invalid_param(at, "A tool needs a `name` that is a string.")),
    };
    let strict = tool.shift_remove("strict").is_some_and(|strict| strict == true);
    let parameters = tool.get("parameters").cloned().unwrap_or_default();
    if !(parameters.is_null() || parameters.is_object()) {
        let at = format!("{at}.parameters");
        return Err(ApiError::invalid_param(
            at,
            "A tool's `parameters` must be a JSON schema, which is an object.",
        ));
    }
    Ok(ToolShape { name, parameters, strict })
}

/// `tool_choice` in the forms of OpenAI's two APIs: a word; `{"type": "function", "name": …}`, in chat with the name
/// inside `function`; or `{"type": "allowed_tools", "mode": …, "tools": […]}`, in chat inside `allowed_tools`.
///
/// # Errors
/// 400 for anything else.
pub(crate) fn openai_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let wrong = || {
        let message = "`tool_choice` must be `none`, `auto`, `required`, an object that names a function, or an \
                       object of type `allowed_tools`.";
        ApiError::invalid_param("tool_choice", message)
    };
    let name = |choice: &Value| {
        let name = choice.pointer("/function/name").or_else(|| choice.get("name")).and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(wrong)
    };
    match choice {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => Err(wrong()),
        },
        Some(choice) => match choice.get("type").and_then(Value::as_str) {
            Some("function") => name(choice).map(ToolChoice::Named),
            Some("allowed_tools") => {
                let inner = choice.get("allowed_tools").unwrap_or(choice);
                let tools = inner.get("tools").and_then(Value::as_array).ok_or_else(wrong)?;
                let names = tools.iter().map(name).collect::<Result<Vec<_>, _>>()?;
                match inner.get("mode").and_then(Value::as_str) {
                    _ if names.is_empty() => Err(wrong()),
                    Some("auto") | None => Ok(ToolChoice::Allowed { names, required: false }),
                    Some("required") => Ok(ToolChoice::Allowed { names, required: true }),
                    Some(_) => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools(choice: Value, parallel: bool) -> Result<Tools, ApiError> {
        let tools = vec![json!({"name": "f", "strict": false, "parameters": {}}), json!({"name": "g"})];
        Tools::new(tools, openai_choice(Some(&choice))?, parallel, |index| format!("tools[{index}]"))
    }

    fn grammar(choice: Value) -> (Vec<String>, bool, bool) {
        let CallGrammar { tools, required, parallel } = tools(choice, true).unwrap().grammar(false).unwrap();
        (tools.into_iter().map(|tool| tool.name).collect(), required, parallel)
    }

    #[test]
    fn every_form_of_choice_is_understood() {
        let both = || vec!["f".to_owned(), "g".to_owned()];
        let g = || vec!["g".to_owned()];
        assert_eq!(tools(json!("auto"), true).unwrap().grammar(false), None);
        assert_eq!(tools(json!("none"), true).unwrap().grammar(true), None);
        assert_eq!(grammar(json!("required")), (both(), true, true));
        for named in
            [json!({"type": "function", "function": {"name": "g"}}), json!({"type": "function", "name": "g"})]
        {
            assert_eq!(grammar(named), (g(), true, false));
        }
        let allowed =
            |mode: &str| json!({"mode": mode, "tools": [{"type": "function", "function": {"name": "g"}}]});
        let in_chat = json!({"type": "allowed_tools", "allowed_tools": allowed("required")});
        assert_eq!(grammar(in_chat), (g(), true, true));
        let mut in_responses = allowed("auto");
        in_responses["type"] = json!("allowed_tools");
        assert_eq!(grammar(in_responses), (g(), false, true));
    }

    #[test]
    fn the_model_is_left_to_itself_unless_something_has_to_be_kept() {
        assert!(tools(json!("auto"), true).unwrap().grammar(true).is_some());
        assert!(tools(json!("auto"), false).unwrap().grammar(false).is_some());
        let strict = vec![json!({"name": "f", "strict": true})];
        let strict = Tools::new(strict, ToolChoice::Auto, true, |index| index.to_string()).unwrap();
        assert!(strict.grammar(false).is_some());
        assert_eq!(strict.shown(), [json!({"name": "f"})]);
    }

    #[test]
    fn a_wrong_choice_is_refused_by_name() {
        for choice in [
            json!("sometimes"),
            json!(3),
            json!({}),
            json!({"type": "function"}),
            json!({"type": "function", "name": "h"}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": []}),
            json!({"type": "allowed_tools", "mode": "often", "tools": [{"name": "f"}]}),
        ] {
            assert_eq!(tools(choice.clone(), true).unwrap_err().param(), Some("tool_choice"), "{choice}");
        }
        let none = Tools::new(Vec::new(), ToolChoice::Required, true, |index| index.to_string());
        assert_eq!(none.unwrap_err().param(), Some("tool_choice"));
    }

    #[test]
    fn a_wrong_tool_is_named_by_its_path() {
        let path = |tool: Value| {
            let tools = Tools::new(vec![json!({"name": "f"}), tool], ToolChoice::Auto, true, |i| {
                format!("tools[{i}]")
            });
            tools.unwrap_err().param().unwrap().to_owned()
        };
        assert_eq!(path(json!("f")), "tools[1]");
        assert_eq!(path(json!({"name": 3})), "tools[1]");
        assert_eq!(path(json!({"name": "g", "parameters": []})), "tools[1].parameters");
    }
}
