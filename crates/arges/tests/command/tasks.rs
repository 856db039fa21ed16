//! Tasks whose answers can be checked.

use serde_json::Value;

use crate::support::{arges, arges_with_stdin};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line of an instance with a response to it.
fn answered(instance: &Value, response: &str) -> String {
    let mut line = instance.clone();
    line["response"] = response.into();
    format!("{line}\n")
}

#[test]
fn solutions_of_generated_instances_earn_1_and_other_responses_0() {
    let generate = ["tasks", "generate", "all", "--count", "2", "--seed", "7", "--difficulty", "2"];
    let instances = lines(&arges(generate).ok());
    assert_eq!(lines(&arges(generate).ok()), instances);
    let solved = lines(&arges(generate.into_iter().chain(["--solved"])).ok());
    assert_eq!(instances.len(), solved.len());
    // Calls of tools are no text in a conversation: of those tasks the answer is none here.
    let mut input = String::new();
    let mut expected = Vec::new();
    for (instance, conversation) in instances.iter().zip(&solved) {
        let assistant = &conversation["messages"][1];
        assert_eq!(conversation["messages"][0]["content"], instance["prompt"]);
        let content = assistant["content"].as_str().unwrap();
        input += &answered(instance, content);
        expected.push(if assistant["tool_calls"].is_array() { 0.0 } else { 1.0 });
        input += &answered(instance, &format!("<think>\n{content}"));
        expected.push(0.0);
        input += &answered(instance, "Answer: I cannot tell");
        expected.push(0.0);
    }
    let verdicts = lines(&arges_with_stdin(&["tasks", "verify"], &input).ok());
    let rewards: Vec<f64> = verdicts.iter().map(|verdict| verdict["reward"].as_f64().unwrap()).collect();
    assert_eq!(rewards, expected);
    assert!(verdicts.iter().all(|verdict| !verdict["reason"].as_str().unwrap().is_empty()));
}

#[test]
fn calls_earn_1_in_the_form_that_show_gives() {
    let shown = arges(["tasks", "show", "tool_call", "--seed", "3", "--difficulty", "4"]).ok();
    let (_, response) = shown.split_once("A right response:\n\n").unwrap();
    let generated = arges(["tasks", "generate", "tool_call", "--seed", "3", "--difficulty", "4"]).ok();
    let instance: Value = serde_json::from_str(&generated).unwrap();
    let input = answered(&instance, response) + &answered(&instance, &response.replace("</tool_calls>", ""));
    let verdicts = lines(&arges_with_stdin(&["tasks", "verify"], &input).ok());
    assert_eq!(verdicts[0]["reward"], 1.0, "{}", verdicts[0]);
    assert_eq!(verdicts[1]["reward"], 0.0, "{}", verdicts[1]);
}

#[test]
fn the_list_as_json_has_a_line_for_each_task_that_show_knows() {
    let listed = lines(&arges(["tasks", "list", "--json"]).ok());
    assert!(listed.len() >= 24);
    for task in &listed {
        assert!(task["max_difficulty"].as_u64().unwrap() >= 1 && task["summary"].is_string());
    }
    let name = listed[0]["name"].as_str().unwrap();
    assert!(arges(["tasks", "show", name]).ok().contains("A right response:"));
    assert!(arges(["tasks", "list"]).ok().lines().count() == 1 + listed.len());
}

#[test]
fn a_malformed_line_is_named_after_the_verdicts_of_those_before_it() {
    let instance: Value = serde_json::from_str(&arges(["tasks", "generate", "addition"]).ok()).unwrap();
    let good = answered(&instance, "Answer: no");
    for (bad, why) in [
        ("{\"task\": \"addition\", ", "EOF"),
        (&instance.to_string(), "response"),
        ("[]", "not an instance"),
        (&answered(&instance, "1").replace("\"addition\"", "\"addtion\""), "no task \"addtion\""),
    ] {
        let ran = arges_with_stdin(&["tasks", "verify"], &format!("{good}\n{bad}"));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert_eq!(lines(&ran.stdout).len(), 1);
        assert!(ran.stderr.contains("line 3 of the input") && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[test]
fn an_unknown_task_and_an_impossible_difficulty_are_refused() {
    let stderr = arges(["tasks", "show", "sudoko"]).failed(2);
    assert!(stderr.contains("sudoko") && stderr.contains("arges tasks list"), "{stderr}");
    let stderr = arges(["tasks", "generate", "sudoku", "--difficulty", "0"]).failed(2);
    assert!(stderr.contains("--difficulty"), "{stderr}");
}

#[test]
fn a_whole_episode_is_answered_and_judged_turn_by_turn() {
    let generate = ["tasks", "generate", "lookup_chain", "--count", "3", "--seed", "5", "--difficulty", "1"];
    let single = arges(["tasks", "generate", "addition", "--seed", "5", "--difficulty", "2"]).ok();
    let input = arges(generate).ok() + &single;
    let answer = ["tasks", "answer", "--device", "cpu", "--parallel", "2", "-n", "300", "--seed", "1"];
    let answered = arges_with_stdin(&answer, &input).ok();
    let answers = lines(&answered);
    let without = |line: &Value| {
        let mut line = line.clone();
        line.as_object_mut().unwrap().shift_remove("response");
        line
    };
    assert_eq!(answers.iter().map(without).collect::<Vec<_>>(), lines(&input), "in order");
    assert!(answers[..3].iter().all(|line| !line["response"].as_array().unwrap().is_empty()));
    assert!(answers[3]["response"].as_str().unwrap().contains("Answer:"));
    let verdicts = lines(&arges_with_stdin(&["tasks", "verify"], &answered).ok());
    assert_eq!(verdicts[3]["reward"], 1.0, "{}", verdicts[3]);
}

#[test]
fn turns_are_judged_as_they_stand() {
    let shown = arges(["tasks", "show", "lookup_chain", "--seed", "3", "--difficulty", "2"]).ok();
    let (_, response) = shown.split_once("A right response:\n\n").unwrap();
    let generated = arges(["tasks", "generate", "lookup_chain", "--seed", "3", "--difficulty", "2"]).ok();
    let mut instance: Value = serde_json::from_str(&generated).unwrap();
    let turns: Vec<&str> = response.trim_end().split_inclusive("</tool_calls>").collect();
    assert!(turns.len() > 2);
    let mut input = String::new();
    for turns in [&turns[..], &turns[..turns.len() - 1], &turns[turns.len() - 1..], &[]] {
        instance["response"] = turns.into();
        input += &format!("{instance}\n");
    }
    let rewards: Vec<Value> = lines(&arges_with_stdin(&["tasks", "verify"], &input).ok());
    let rewards: Vec<f64> = rewards.iter().map(|verdict| verdict["reward"].as_f64().unwrap()).collect();
    // The last turn alone has the right answer: only the answer is judged.
    assert_eq!(rewards, [1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn an_episode_is_shown_with_its_turns_and_its_reward() {
    let args = ["tasks", "play", "addition", "--seed", "5", "--difficulty", "2", "--device", "cpu"];
    let shown = arges(args).ok();
    assert!(shown.starts_with("[addition, seed 5, difficulty 2]\n"), "{shown}");
    assert!(shown.contains("\n[turn 1]\n") && shown.ends_with("\nreward 1: right\n"), "{shown}");
    let stderr = arges(["tasks", "play", "sudoko"]).failed(2);
    assert!(stderr.contains("arges tasks list"), "{stderr}");
}
