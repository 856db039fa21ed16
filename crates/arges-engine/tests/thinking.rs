//! Thinking, its budget, grammars, and text that goes round in circles.

mod support;

use arges_engine::{
    Engine, Event, FinishReason, GenerateRequest, RepetitionStop, SamplingParams, StopCause, StopConditions,
    Thinking,
};
use arges_text::grammar::{AnswerGrammar, Format, Grammar, GrammarCompiler};
use serde_json::json;
use support::{Answer, TOKENIZER, alone, collect, engine, greedy, options, prompt};

/// What closes thinking that has reached its budget.
const WRAP_UP: &str = "\n\nThat is enough thinking; now the answer.\n</think>\n";

fn thinking(prompt_end: &str, budget: Option<usize>) -> Option<Thinking> {
    Some(Thinking { prompt_end: prompt_end.to_owned(), budget })
}

fn reasoning(answer: &Answer) -> String {
    let pieces = answer.tokens.iter().map(|token| token.reasoning.as_str());
    pieces.chain([answer.finished.reasoning.as_str()]).collect()
}

fn grammar(format: Format) -> Option<Grammar> {
    let answer = AnswerGrammar { format: Some(format), calls: None };
    Some(GrammarCompiler::new(&TOKENIZER).unwrap().compile(&answer).unwrap())
}

fn choice(choices: &[&str]) -> Option<Grammar> {
    grammar(Format::Choice(choices.iter().map(|choice| String::from(*choice)).collect()))
}

fn biased(id: u32) -> SamplingParams {
    SamplingParams { logit_bias: vec![(id, 100.0)], ..SamplingParams::greedy() }
}

#[test]
fn at_its_budget_thinking_is_closed_and_the_answer_follows_within_the_limit() {
    let stop = StopConditions { ignore_eos: true, ..StopConditions::default() };
    let request = |budget| GenerateRequest {
        thinking: thinking("<think>\n", budget),
        stop: stop.clone(),
        ..greedy(prompt(20, 1), 120)
    };
    let free = alone(request(None));
    let bounded = alone(request(Some(7)));
    let wrap_up = TOKENIZER.encode(WRAP_UP).unwrap();
    assert_eq!(bounded.ids()[..7], free.ids()[..7]);
    assert_eq!(bounded.ids()[7..7 + wrap_up.len()], wrap_up);
    assert_eq!(bounded.tokens.len(), 120);
    let answer = &bounded.ids()[7 + wrap_up.len()..];
    assert_eq!(bounded.text(), TOKENIZER.decode(answer));
    let thought = TOKENIZER.decode(&bounded.ids()[..7]);
    assert_eq!(reasoning(&bounded), format!("{thought}\n\nThat is enough thinking; now the answer."));
    // The line break after the tag is the last token of the wrap-up.
    assert_eq!(bounded.finished.usage.reasoning_tokens, 7 + wrap_up.len() - 1);
}

#[test]
fn a_budget_that_leaves_no_room_for_the_answer_is_cut_so_that_it_does() {
    let wrap_up = TOKENIZER.encode(WRAP_UP).unwrap().len();
    let run = |budget, max_tokens| {
        let stop = StopConditions { ignore_eos: true, ..StopConditions::default() };
        let thinking = thinking("<think>\n", Some(budget));
        alone(GenerateRequest { thinking, stop, ..greedy(prompt(20, 1), max_tokens) })
    };
    let answered = |answer: &Answer| answer.tokens.len() - answer.finished.usage.reasoning_tokens - 1;
    for (budget, max_tokens, room) in [(1000, 120, 30), (100, 100, 25), (20, 120, 120 - 20 - wrap_up)] {
        let answer = run(budget, max_tokens);
        assert!(reasoning(&answer).ends_with("now the answer."), "{}", reasoning(&answer));
        assert_eq!((answer.tokens.len(), answered(&answer)), (max_tokens, room), "{budget} of {max_tokens}");
    }
    // The least with which there is an answer: thinking is closed after its first token.
    let short = run(50, wrap_up + 3);
    assert_eq!(answered(&short), 2);
    // Not even the closing fits: the budget is kept as it is, and all is thinking.
    let none = run(10, wrap_up);
    assert_eq!((none.text(), none.finished.usage.reasoning_tokens), (String::new(), wrap_up));
}

#[test]
fn thinking_that_does_not_end_is_all_reasoning() {
    let request = GenerateRequest { thinking: thinking("<think>\n", None), ..greedy(prompt(20, 1), 30) };
    let answer = alone(request);
    assert_eq!((answer.text(), answer.finished.reason), (String::new(), FinishReason::Length));
    assert_eq!(reasoning(&answer), TOKENIZER.decode(&answer.ids()));
    assert_eq!(answer.finished.usage.reasoning_tokens, 30);
}

#[test]
fn text_without_a_block_is_all_answer() {
    let request = |thinking| GenerateRequest { thinking, ..greedy(prompt(20, 1), 30) };
    let (told, plain) = (alone(request(thinking("", Some(3)))), alone(request(None)));
    assert_eq!((told.text(), told.ids()), (plain.text(), plain.ids()));
    assert_eq!((reasoning(&told), told.finished.usage.reasoning_tokens), (String::new(), 0));
}

#[test]
fn stop_strings_are_looked_for_in_the_answer_alone() {
    let id = u32::from(b'a');
    let stop = StopConditions { strings: vec!["aaa".to_owned()], ..StopConditions::default() };
    let request = GenerateRequest {
        thinking: thinking("<think>", Some(10)),
        sampling: biased(id),
        stop,
        ..greedy(prompt(5, 2), 200)
    };
    let answer = alone(request);
    assert!(reasoning(&answer).starts_with("aaaaaaaaaa\n"), "{}", reasoning(&answer));
    assert_eq!((answer.text(), answer.finished.stop), (String::new(), Some(StopCause::Text(0))));
}

#[test]
fn an_answer_keeps_to_its_grammar_and_ends_with_it() {
    let request = GenerateRequest { grammar: choice(&["yes", "no"]), ..greedy(prompt(20, 3), 50) };
    let answer = alone(request);
    assert!(["yes", "no"].contains(&answer.text().as_str()), "{}", answer.text());
    assert_eq!(
        (answer.finished.reason, answer.finished.stop),
        (FinishReason::Stop, Some(StopCause::Grammar))
    );
    assert_eq!(TOKENIZER.decode(&answer.ids()), answer.text());
}

#[test]
fn a_grammar_begins_where_the_thinking_ends() {
    for seed in 0..8 {
        let request = GenerateRequest {
            thinking: thinking("<think>\n", Some(9)),
            grammar: choice(&["yes", "no"]),
            ..support::seeded(prompt(20, 4), 150, seed)
        };
        let answer = alone(request);
        assert!(["yes", "no"].contains(&answer.text().as_str()), "{}", answer.text());
        assert!(reasoning(&answer).ends_with("now the answer."));
    }
}

#[test]
fn before_its_answer_a_model_may_open_thinking_itself() {
    let request = |first: char| GenerateRequest {
        thinking: thinking("", Some(12)),
        grammar: choice(&["<tag>", "no"]),
        sampling: biased(u32::from(first)),
        ..greedy(prompt(20, 5), 150)
    };
    // The least of `<` is that thinking may go on from it; the rest of the way a random model chooses.
    let opened = alone(request('t'));
    assert!(["<tag>", "no"].contains(&opened.text().as_str()), "{}", opened.text());
    let no = alone(request('n'));
    assert_eq!((no.text(), reasoning(&no)), ("no".to_owned(), String::new()));
    let think = GenerateRequest { grammar: choice(&["no"]), ..request('<') };
    let thought = alone(think);
    assert!(reasoning(&thought).starts_with("<<<<"), "{}", reasoning(&thought));
    assert_eq!(thought.text(), "no");
}

#[test]
fn many_answers_under_grammars_at_once_are_those_they_are_alone() {
    let requests: Vec<GenerateRequest> = (0..12)
        .map(|salt| GenerateRequest {
            thinking: (salt % 2 == 0).then(|| thinking("<think>\n", Some(5)).unwrap()),
            grammar: grammar(Format::Regex("[a-f]{3,9} [0-9]{2}".to_owned())),
            ..support::seeded(prompt(10 + salt as usize, salt), 120, u64::from(salt))
        })
        .collect();
    let engine: Engine = engine(options());
    let together = support::together(&engine, &requests);
    for (request, answer) in requests.into_iter().zip(together) {
        assert_eq!(answer.finished.stop, Some(StopCause::Grammar), "{}", answer.text());
        assert_eq!(alone(request), answer);
    }
}

#[test]
fn a_grammar_that_takes_too_much_ends_its_own_generation_alone() {
    // Any of so many properties may come first.
    let names = (0..1500).map(|number| (format!("k{number}"), json!({"type": "integer"})));
    let properties: serde_json::Map<String, serde_json::Value> = names.collect();
    let schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    let grammar = grammar(Format::JsonSchema { schema, strict: true });
    let engine = engine(options());
    let request = GenerateRequest { grammar, ..greedy(prompt(5, 1), 500) };
    let mut generation = engine.submit(request).unwrap();
    let last = std::iter::from_fn(|| generation.blocking_next()).last();
    assert!(matches!(&last, Some(Event::GrammarFailed(why)) if why.contains("too complex")), "{last:?}");
    let good = collect(engine.submit(greedy(prompt(5, 1), 5)).unwrap());
    assert_eq!(good.tokens.len(), 5);
}

#[test]
fn a_run_of_certain_tokens_ends_the_generation_where_that_is_asked_for() {
    let run = |tokens, probability| {
        let repetition = Some(RepetitionStop { tokens, probability });
        let stop = StopConditions { repetition, ignore_eos: true, ..StopConditions::default() };
        let answer = alone(GenerateRequest { stop, ..greedy(prompt(20, 6), 40) });
        (answer.tokens.len(), answer.finished.reason)
    };
    // Every token is more likely than not at all, and a random model is never this sure.
    assert_eq!(run(5, 0.0), (5, FinishReason::Repetition));
    assert_eq!(run(1, 0.999), (40, FinishReason::Length));
}
