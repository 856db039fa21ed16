//! Log-probabilities in the shapes of the two APIs.

use arges_engine::{TokenEvent, TokenLogprob};
use arges_text::Tokenizer;
use serde::{Serialize, Serializer};

/// Stands for a probability of 0, whose logarithm JSON cannot hold; vLLM writes the same.
const LEAST_LOGPROB: f32 = -9999.0;

/// A token of the prompt or the answer with its log-probability; `None` for the first token of a prompt,
/// which nothing predicts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scored<'a> {
    pub id: u32,
    pub logprob: Option<f32>,
    pub top: &'a [(u32, f32)],
}

impl<'a> From<&'a TokenEvent> for Scored<'a> {
    fn from(token: &'a TokenEvent) -> Scored<'a> {
        Scored { id: token.id, logprob: Some(token.logprob), top: &token.top }
    }
}

/// The tokens of a prompt with what the engine says of them.
pub(crate) fn scored_prompt<'a>(
    ids: &'a [u32],
    logprobs: &'a [Option<TokenLogprob>],
) -> impl Iterator<Item = Scored<'a>> {
    ids.iter().zip(logprobs).map(|(&id, scored)| match scored {
        Some(scored) => Scored { id, logprob: Some(scored.logprob), top: &scored.top },
        None => Scored { id, logprob: None, top: &[] },
    })
}

/// `logprobs` of a chat choice.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
    /// Refusals are a matter of OpenAI's own models; clients expect the field.
    refusal: Option<()>,
}

/// One token of [`ChatLogprobs`].
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Clone, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl ChatLogprobs {
    /// Adds a generated token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: &TokenEvent) {
        let chat_token = |id, logprob| ChatToken {
            token: token_text(tokenizer, id),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id),
        };
        self.content.push(ChatLogprob {
            token: chat_token(token.id, token.logprob),
            top_logprobs: token.top.iter().map(|&(id, logprob)| chat_token(id, logprob)).collect(),
        });
    }
}

/// `logprobs` of a `/v1/completions` choice: parallel lists, one entry per token.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// `null` for the first token of an echoed prompt.
    top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where each token's text starts, in characters of the choice's text.
    text_offset: Vec<usize>,
}

/// Token text to log-probability, the likeliest first, as a JSON object. The token itself is always among them,
/// and its figure is digit by digit that of `token_logprobs`: lm-eval compares the two.
#[derive(Debug, Clone)]
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f32, top: &[(u32, f32)]) -> TopLogprobs {
        let own = token_text(tokenizer, id);
        let mut entries: Vec<(String, f32)> = top
            .iter()
            .map(|&(other, logprob)| (other, token_text(tokenizer, other), finite(logprob)))
            // Another token may be spelled as this one is; an object has room for one of them.
            .filter(|(other, text, _)| *other == id || *text != own)
            .map(|(_, text, logprob)| (text, logprob))
            .collect();
        if top.iter().all(|&(other, _)| other != id) {
            entries.push((own, finite(logprob)));
        }
        TopLogprobs(entries)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

impl CompletionLogprobs {
    /// Adds a token whose text starts at `*offset`, and moves `offset` past it.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: Scored<'_>, offset: &mut usize) {
        let top = token.logprob.map(|logprob| TopLogprobs::new(tokenizer, token.id, logprob, token.top));
        self.top_logprobs.push(top);
        self.tokens.push(token_text(tokenizer, token.id));
        self.token_logprobs.push(token.logprob.map(finite));
        self.text_offset.push(*offset);
        *offset += tokenizer.token_bytes(token.id).map_or(0, |bytes| characters_started(&bytes));
    }
}

/// The token as text; where it is not text of its own (part of a character, or an id the tokenizer does not
/// know), a form that says so and stays unique, as OpenAI writes it: `bytes:\xe2\x82`.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.token_bytes(id) {
        Some(bytes) => String::from_utf8(bytes).unwrap_or_else(|error| {
            error.as_bytes().iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
        }),
        None => format!("token_id:{id}"),
    }
}

/// Characters whose first byte is in `bytes`, so that a character over several tokens counts once.
fn characters_started(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0b1100_0000 != 0b1000_0000).count()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST_LOGPROB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::frontend;
    use serde_json::json;

    fn event(id: u32, logprob: f32, top: &[(u32, f32)]) -> TokenEvent {
        TokenEvent {
            id,
            text: String::new(),
            reasoning: String::new(),
            logprob,
            top: top.to_vec(),
            weight_version: 0,
            experts: Vec::new(),
        }
    }

    #[test]
    fn chat_logprobs_have_the_shape_of_the_api() {
        let mut logprobs = ChatLogprobs::default();
        logprobs.push(&frontend(512).tokenizer, &event(97, -0.5, &[(98, -0.25), (97, f32::NEG_INFINITY)]));
        let expected = json!({"refusal": null, "content": [{
            "token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [
                {"token": "b", "logprob": -0.25, "bytes": [98]},
                {"token": "a", "logprob": -9999.0, "bytes": [97]},
            ],
        }]});
        assert_eq!(serde_json::to_value(&logprobs).unwrap(), expected);
    }

    #[test]
    fn completion_logprobs_count_characters_and_hold_the_token_itself() {
        let tokenizer = &frontend(512).tokenizer;
        let prompt = [97, 0xc3];
        let scored = [None, Some(TokenLogprob { id: 0xc3, logprob: -1.0, top: vec![(98, -0.5)] })];
        let answer = [event(0xa9, -2.0, &[]), event(98, -3.0, &[(98, -3.0)])];
        let mut logprobs = CompletionLogprobs::default();
        let mut offset = 0;
        scored_prompt(&prompt, &scored)
            .chain(answer.iter().map(Scored::from))
            .for_each(|token| logprobs.push(tokenizer, token, &mut offset));
        let expected = json!({
            "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"],
            "token_logprobs": [null, -1.0, -2.0, -3.0],
            "top_logprobs": [
                null,
                {"b": -0.5, "bytes:\\xc3": -1.0},
                {"bytes:\\xa9": -2.0},
                {"b": -3.0},
            ],
            "text_offset": [0, 1, 2, 2],
        });
        assert_eq!(serde_json::to_value(&logprobs).unwrap(), expected);
    }

    #[test]
    fn an_id_without_a_token_still_has_a_name() {
        assert_eq!(token_text(&frontend(512).tokenizer, 4000), "token_id:4000");
    }
}
