//! What holds for every task, difficulty and seed.

use std::time::{Duration, Instant};

use arges_tasks::{Instance, Random, Task, all, find};

/// Seeds of the fast tests.
const FEW: u64 = 50;
/// Seeds of the full test.
const MANY: u64 = 1000;

/// Programs run in whatever sandbox there is.
fn allow_any_sandbox() {
    arges_tasks::sandbox::set_policy(arges_tasks::sandbox::Policy::BestEffort);
}

/// Runs `check` on the instances of every task and difficulty, the tasks spread over the machine's cores. Of tasks that
/// run programs, which takes far longer, there are fewer.
fn for_instances(seeds: u64, check: impl Fn(&dyn Task, &Instance) + Sync) {
    allow_any_sandbox();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(task) = all().get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let seeds = if task.runs_programs() { seeds.div_ceil(100) } else { seeds };
                    for difficulty in 1..=task.max_difficulty() {
                        (0..seeds).for_each(|seed| check(*task, &task.generate(seed, difficulty)));
                    }
                }
            });
        }
    });
}

fn place(instance: &Instance) -> String {
    format!("{} of seed {} and difficulty {}", instance.task, instance.seed, instance.difficulty)
}

/// The solution is right, what is certainly wrong is not, and nothing else changes that.
fn check_verifier(task: &dyn Task, instance: &Instance) {
    let solution = task.solve(instance);
    let ways = [solution.response(), solution.answer.clone(), format!("  {}\n\n", solution.answer)];
    for response in &ways[..if task.runs_programs() { 1 } else { 3 }] {
        let verdict = task.verify(instance, response);
        assert_eq!(verdict.reward, 1.0, "{}: {}: {response}", place(instance), verdict.reason);
    }
    let wrong = task.wrong_responses(instance);
    assert!(!wrong.is_empty(), "{} has no wrong responses", place(instance));
    for response in wrong {
        let verdict = task.verify(instance, &response);
        assert_eq!(verdict.reward, 0.0, "{}: {response}", place(instance));
        assert!(!verdict.reason.is_empty());
    }
    let unended = format!("<think>\n{}", solution.answer);
    assert_eq!(task.verify(instance, &unended).reward, 0.0, "{}", place(instance));
}

#[test]
fn solutions_are_right_and_changed_ones_are_wrong() {
    for_instances(FEW, check_verifier);
}

#[test]
#[ignore = "takes a minute; cargo test --release -p arges-tasks -- --ignored"]
fn solutions_are_right_and_changed_ones_are_wrong_a_thousand_times() {
    for_instances(MANY, check_verifier);
}

#[test]
#[ignore = "timed; cargo test --release -p arges-tasks -- --ignored --nocapture"]
fn instances_are_made_solved_and_judged_in_milliseconds() {
    const SEEDS: u32 = 100;
    for task in all().iter().filter(|task| !task.runs_programs()) {
        for difficulty in 1..=task.max_difficulty() {
            let mut slowest = Duration::ZERO;
            let mut generated = Duration::ZERO;
            let mut judged = Duration::ZERO;
            for seed in 0..u64::from(SEEDS) {
                let started = Instant::now();
                let instance = task.generate(seed, difficulty);
                slowest = slowest.max(started.elapsed());
                generated += started.elapsed();
                let response = task.solve(&instance).response();
                let started = Instant::now();
                task.verify(&instance, &response);
                judged += started.elapsed();
            }
            let (generated, judged) = (generated / SEEDS, judged / SEEDS);
            println!(
                "{:20} {difficulty:2}: generate {generated:9.1?}, at most {slowest:9.1?}; verify {judged:9.1?}",
                task.name()
            );
            assert!(generated.max(judged) < Duration::from_millis(20), "{} {difficulty}", task.name());
        }
    }
}

#[test]
fn an_instance_survives_json() {
    for_instances(3, |_, instance| {
        let line = serde_json::to_string(instance).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Instance>(&line).unwrap(), *instance);
    });
}

#[test]
fn a_seed_always_gives_the_same_instance_and_another_one_a_different_one() {
    for_instances(3, |task, instance| {
        assert_eq!(task.generate(instance.seed, instance.difficulty), *instance);
    });
    for task in all() {
        let prompts =
            |difficulty| (0..20).map(|seed| task.generate(seed, difficulty).prompt).collect::<Vec<_>>();
        let mut hardest = prompts(task.max_difficulty());
        hardest.sort();
        hardest.dedup();
        assert!(
            hardest.len() >= 15,
            "{} gives {} different prompts for 20 seeds",
            task.name(),
            hardest.len()
        );
    }
}

#[test]
fn difficulties_outside_of_the_range_are_the_nearest_within() {
    for task in all() {
        assert_eq!(task.generate(5, 0), task.generate(5, 1));
        assert_eq!(task.generate(5, u32::MAX), task.generate(5, task.max_difficulty()));
        assert_eq!(task.generate(u64::MAX, 1).seed, u64::MAX);
    }
}

/// Responses meant to break a parser.
fn hostile() -> Vec<String> {
    const MEGABYTE: usize = 1 << 20;
    let mut responses = vec![
        String::new(),
        "\0\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{feff}".to_owned(),
        "Answer:".to_owned(),
        "Answer: ٣ 四 ½ 𝟙 e\u{301}".to_owned(),
        "Answer: NaN".to_owned(),
        "Answer: -0".to_owned(),
        "</think>".to_owned(),
        "<think>".to_owned(),
        "Answer: 99999999999999999999999999999999999999999999".to_owned(),
        "<tool_calls>\n{\"name\": \"\u{0}\", \"arguments\": {}}\n".to_owned(),
        "<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \n</tool_calls>".to_owned(),
        "<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": 1e99999}}\n</tool_calls>".to_owned(),
        "Answer: 10^10^10".to_owned(),
        "Answer: 1e999999999".to_owned(),
        "Answer: -170141183460469231731687303715884105728".to_owned(),
    ];
    for (open, close) in [("(", ")"), ("[", "]"), ("{\"a\":", "}"), ("\\boxed{", "}")] {
        let nested = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        responses.push(format!("Answer: {nested}"));
        responses.push(format!("<tool_calls>\n{nested}\n</tool_calls>"));
        responses.push(format!(
            "<tool_calls>\n{{\"name\": \"f\", \"arguments\": {{\"a\": {nested}}}}}\n</tool_calls>"
        ));
    }
    for piece in [
        "(",
        "[",
        "{",
        "\\boxed{",
        "((((1",
        "1 ",
        "r1c1 ",
        "A=1, ",
        "\n",
        "1+",
        "Answer:\n",
        "<think></think>",
        "\"",
        "\\",
        "ß",
        "9",
        "\0",
        "\u{1b}[2J",
        "\u{202e}",
        "👩‍👩‍👧",
        "<tool_calls>",
        "{\"a\":",
        "$",
        "```",
        "- ",
    ] {
        responses.push(piece.repeat(MEGABYTE / piece.len()));
        responses.push(format!("Answer: {}", piece.repeat(MEGABYTE / piece.len())));
    }
    responses
}

#[test]
fn hostile_responses_earn_nothing_and_take_no_time() {
    let hostile = hostile();
    for task in all() {
        for difficulty in [1, task.max_difficulty()] {
            let instance = task.generate(1, difficulty);
            for response in &hostile {
                let started = Instant::now();
                let verdict = task.verify(&instance, response);
                let start: String = response.chars().take(30).collect();
                let place = format!("{}: {start:?}", place(&instance));
                assert_eq!(verdict.reward, 0.0, "{place}");
                assert!(verdict.reason.len() < 1000, "{place}: {}", verdict.reason.len());
                assert!(started.elapsed() < Duration::from_secs(5), "{place}: {:?}", started.elapsed());
            }
        }
    }
}

#[test]
fn an_instance_of_another_task_or_without_its_data_earns_nothing() {
    for task in all() {
        let instance = task.generate(1, 1);
        let response = task.solve(&instance).response();
        let stranger = Instance { task: "stranger".to_owned(), ..instance.clone() };
        assert_eq!(task.verify(&stranger, &response).reward, 0.0, "{}", task.name());
        for data in
            [serde_json::Value::Null, serde_json::json!([1, 2]), serde_json::json!({ "size": 1u64 << 60 })]
        {
            let broken = Instance { data, answer: serde_json::Value::Null, ..instance.clone() };
            assert_eq!(task.verify(&broken, &response).reward, 0.0, "{}", task.name());
            task.solve(&broken);
        }
    }
}

#[test]
fn a_response_of_random_pieces_of_the_solution_is_judged_without_a_crash() {
    for_instances(2, |task, instance| {
        let mut random = Random::new("pieces", instance.seed, instance.difficulty);
        let solution: Vec<char> = task.solve(instance).answer.chars().collect();
        for _ in 0..if task.runs_programs() { 2 } else { 50 } {
            let mut changed = solution.clone();
            for _ in 0..=random.index(4) {
                match (random.index(3), changed.is_empty()) {
                    (0, false) => drop(changed.remove(random.index(changed.len()))),
                    (1, false) => changed.truncate(random.index(changed.len())),
                    _ => changed.insert(
                        random.index(changed.len() + 1),
                        *random.choose(&['(', '-', '9', ' ', 'ß', '\n']),
                    ),
                }
            }
            let response: String = changed.into_iter().collect();
            let reward = task.verify(instance, &response).reward;
            assert!((0.0..=1.0).contains(&reward));
        }
    });
}

#[test]
fn every_task_says_what_it_is() {
    for task in all() {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(task.name().chars().all(is_name), "{}", task.name());
        assert!(!task.summary().is_empty() && !task.summary().contains('\n'), "{}", task.name());
        assert!(task.max_difficulty() >= 1);
        assert!(find(task.name()).is_some());
    }
}
