//! The model that is part of the program.

use std::path::Path;

use crate::support::{arges, ids};

fn directory() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano").display().to_string()
}

#[test]
fn without_a_model_the_embedded_one_gives_what_its_directory_gives() {
    let directory = directory();
    let with = |args: &[&str], model: &[&str]| arges(args.iter().chain(model).copied());
    let from_directory = ["--model", directory.as_str()];

    let generate = ["generate", "--max-tokens", "8", "--json", "Two and two"];
    let embedded = with(&generate, &[]);
    assert!(embedded.stderr.contains("without --model it is arges-nano"), "{}", embedded.stderr);
    let embedded = embedded.json();
    assert!(!ids(&embedded["ids"]).is_empty());
    assert_eq!(embedded, with(&generate, &from_directory).json());

    let score = ["score", "--json", "Two and two"];
    assert_eq!(with(&score, &[]).json(), with(&score, &from_directory).json());

    let chat = ["chat", "--max-tokens", "8", "--temperature", "0", "What is 2 + 2?"];
    assert_eq!(with(&chat, &[]).ok(), with(&chat, &from_directory).ok());

    assert_eq!(arges(["inspect", "--json"]).json(), arges(["inspect", "--json", &directory]).json());
}

#[test]
fn the_embedded_model_may_be_named() {
    let text = arges(["inspect"]).ok();
    assert!(text.starts_with("arges-nano: ") && text.contains("sound"), "{text}");
    assert_eq!(arges(["inspect", "arges-nano"]).ok(), text);
    let named = arges(["generate", "--model", "arges-nano", "-n", "2", "--json", "x"]);
    assert!(!named.stderr.contains("without --model"), "{}", named.stderr);
    assert_eq!(named.json(), arges(["generate", "-n", "2", "--json", "x"]).json());
}

#[test]
fn thinking_is_shown_bounded_or_left_out() {
    let chat = |budget: &[&str]| {
        let args = ["chat", "--temperature", "0", "What is 17 + 25?"];
        arges(args.iter().chain(budget).copied()).ok()
    };
    let free = chat(&[]);
    assert!(free.starts_with("<think>\n17: 1 7\n") && free.ends_with("\n</think>\nAnswer: 42\n"), "{free}");
    let bounded = chat(&["--thinking-budget", "4"]);
    assert!(bounded.contains("That is enough thinking; now the answer.\n</think>\n"), "{bounded}");
    assert!(!chat(&["--thinking-budget", "0"]).contains("think>"));
}
