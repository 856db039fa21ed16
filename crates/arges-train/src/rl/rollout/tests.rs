//! Episodes of a scripted model.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use arges_text::{ChatTemplate, Tokenizer};
use futures_util::future::BoxFuture;

use super::*;
use crate::reward_model::tests::{endpoint, said};
use crate::rl::config::RlConfig;
use crate::rl::policy::Sampled;

/// Says what it is told to, a text a turn, and notes what it was asked.
struct Script {
    talk: Talk,
    /// Texts, and after how many tokens of each it breaks off once.
    turns: Vec<(String, Option<usize>)>,
    asked: Mutex<Vec<Turn>>,
    /// Whether it forgets a log-probability.
    forgets: bool,
}

impl Script {
    fn new(turns: &[(&str, Option<usize>)]) -> Self {
        let turns = turns.iter().map(|(text, broken)| ((*text).to_owned(), *broken)).collect();
        Self { talk: talk(), turns, asked: Mutex::new(Vec::new()), forgets: false }
    }

    fn answer(&self, turn: Turn) -> Sampled {
        let mut asked = self.asked.lock().unwrap();
        asked.push(turn);
        // The turn is the one whose parts have not all been said.
        let mut calls = asked.len() - 1;
        let mut number = 0;
        while calls > usize::from(self.turns[number].1.is_some()) {
            calls -= 1 + usize::from(self.turns[number].1.is_some());
            number += 1;
        }
        let (text, broken) = &self.turns[number];
        let mut tokens = self.talk.tokenizer().encode(text).unwrap();
        tokens.push(self.talk.tokenizer().end_token().unwrap());
        let most = asked.last().unwrap().max_tokens;
        let (part, end) = match (broken, calls) {
            (None, _) if tokens.len() > most => (tokens[..most].to_vec(), TurnEnd::Length),
            (Some(at), 0) => (tokens[..*at].to_vec(), TurnEnd::Aborted),
            (Some(at), _) => (tokens[*at..].to_vec(), TurnEnd::Stop),
            (None, _) => (tokens, TurnEnd::Stop),
        };
        let count = part.len();
        Sampled {
            tokens: part,
            logprobs: vec![-0.5; count - usize::from(self.forgets)],
            versions: vec![asked.len() as u64; count],
            experts: Vec::new(),
            end,
        }
    }
}

impl Policy for Script {
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>> {
        Box::pin(async { Ok(self.answer(turn)) })
    }
}

fn talk() -> Talk {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let template = ChatTemplate::from_dir(&nano).unwrap().unwrap_or_else(ChatTemplate::default_m1);
    Talk::new(Tokenizer::from_dir(&nano).unwrap(), template).unwrap()
}

const LIMITS: Limits = Limits { longest: 4000, max_turns: 8, repetition: None, experts: false };

fn job(task: &str) -> Job {
    Job {
        group: 4,
        member: 2,
        task: task.to_owned(),
        difficulty: 1,
        seed: 7,
        sampling_seed: 11,
        window: 500,
        greedy: false,
    }
}

fn play_within(script: &Arc<Script>, job: Job, limits: Limits) -> Result<Trajectory, EpisodeError> {
    let rollouts = Rollouts::new(Player::new(Arc::clone(script) as _, talk(), limits), 1).unwrap();
    rollouts.submit(job);
    rollouts.next(Duration::from_secs(20)).expect("an episode that ends").outcome
}

fn play(script: &Arc<Script>, task: &str, longest: usize) -> Result<Trajectory, EpisodeError> {
    play_within(script, job(task), Limits { longest, ..LIMITS })
}

const CALL: &str = "<tool_calls>\n{\"name\": \"get\", \"arguments\": {\"key\": \"nothing\"}}\n</tool_calls>";

/// The turns of the solution of that job's instance.
fn solution(job: &Job) -> Vec<String> {
    let task = arges_tasks::find(&job.task).unwrap();
    let solution = task.solve(&task.generate(job.seed, job.difficulty)).answer;
    solution.split_inclusive("</tool_calls>").map(|turn| turn.trim().to_owned()).collect()
}

fn says(turns: &[String]) -> Arc<Script> {
    Arc::new(Script::new(&turns.iter().map(|turn| (turn.as_str(), None)).collect::<Vec<_>>()))
}

#[test]
fn an_episode_is_played_to_its_end_and_the_end_is_judged() {
    let job = Job { difficulty: 3, ..job("lookup_chain") };
    let turns = solution(&job);
    assert!(turns.len() > 3, "{turns:?}");
    let trajectory = play_within(&says(&turns), job.clone(), LIMITS).unwrap();
    assert_eq!((trajectory.reward, trajectory.turns.len()), (1.0, turns.len()), "{}", trajectory.reason);
    // The first of the calls is run, whatever comes after: a wrong end is wrong, and has the same results.
    let wrong: Vec<String> =
        turns[..turns.len() - 1].iter().cloned().chain(["Answer: none".to_owned()]).collect();
    let other = play_within(&says(&wrong), job, LIMITS).unwrap();
    assert_eq!(other.reward, 0.0);
    let last = trajectory.turns.last().unwrap().start;
    assert_eq!(other.tokens[..last], trajectory.tokens[..last]);
    // What is learned is what was sampled, in each turn to its end token, and nothing of the results.
    let mut batch = arges_model::training::TrainingBatch::default();
    trajectory.push_to(&mut batch);
    let learned: Vec<u32> = batch.targets.iter().map(|target| target.token).collect();
    let talk = talk();
    let said = turns.iter().flat_map(|turn| {
        let mut tokens = talk.tokenizer().encode(turn).unwrap();
        tokens.push(talk.tokenizer().end_token().unwrap());
        tokens
    });
    assert_eq!(learned, said.collect::<Vec<u32>>());
    assert!(batch.tokens.len() > learned.len() + 20 * turns.len());
}

#[test]
fn an_episode_ends_at_its_limits() {
    let job = Job { difficulty: 3, ..job("lookup_chain") };
    let turns = solution(&job);
    let lengths: Vec<usize> =
        turns.iter().map(|turn| talk().tokenizer().encode(turn).unwrap().len() + 1).collect();
    // Turns: the last one that is allowed makes a call, and is the last.
    let script = says(&turns);
    let trajectory = play_within(&script, job.clone(), Limits { max_turns: 2, ..LIMITS }).unwrap();
    assert_eq!((trajectory.turns.len(), trajectory.end, trajectory.reward), (2, End::Stop, 0.0));
    assert_eq!(trajectory.reason, "the episode was cut off before its end");
    // The window is that of all turns together: here it ends in the middle of the second.
    let window = lengths[0] + lengths[1] / 2;
    let trajectory = play_within(&says(&turns), Job { window, ..job.clone() }, LIMITS).unwrap();
    assert_eq!((trajectory.turns.len(), trajectory.end, trajectory.reward), (2, End::Length, 0.0));
    assert_eq!(trajectory.sampled(), window);
    // And here just after the first.
    let window = lengths[0];
    let trajectory = play_within(&says(&turns), Job { window, ..job.clone() }, LIMITS).unwrap();
    assert_eq!((trajectory.turns.len(), trajectory.end, trajectory.sampled()), (1, End::Length, window));
    assert_eq!(trajectory.reason, "results of tools leave no room for an answer");
    // The sequence has room for the first turn, but not for its results.
    let asked = script.asked.lock().unwrap();
    let longest = asked[0].prompt.len() + lengths[0] + 1;
    drop(asked);
    let trajectory = play_within(&says(&turns), job, Limits { longest, ..LIMITS }).unwrap();
    assert_eq!((trajectory.turns.len(), trajectory.end), (1, End::Length));
    assert_eq!(trajectory.tokens.len(), longest - 1);
}

#[test]
fn results_of_tools_go_back_and_only_what_the_model_sampled_is_its_own() {
    let script = Arc::new(Script::new(&[(CALL, None), ("Answer: none", None)]));
    let trajectory = play(&script, "lookup_chain", 4000).unwrap();
    let talk = talk();
    let texts: Vec<String> =
        trajectory.turns.iter().map(|turn| talk.text(&trajectory.tokens[turn.clone()])).collect();
    assert_eq!(texts, [CALL, "Answer: none"]);
    let between = trajectory.turns[0].end..trajectory.turns[1].start;
    let told = talk.tokenizer().decode(&trajectory.tokens[between]);
    assert!(told.contains("error") || told.contains("nothing"), "the tool's answer stands between: {told}");
    assert_eq!((trajectory.reward, trajectory.end), (0.0, End::Stop));
    let asked = script.asked.lock().unwrap();
    assert_eq!(asked[1].prompt, trajectory.tokens[..trajectory.turns[1].start]);
    assert!(
        asked[1].prompt.starts_with(&trajectory.tokens[..trajectory.turns[0].end]),
        "never tokenised again"
    );
    assert_ne!(asked[0].seed, asked[1].seed);
    assert_eq!(asked[1].max_tokens, 500 - trajectory.turns[0].len());
}

#[test]
fn a_turn_that_was_broken_off_goes_on_from_where_it_was_with_its_seed() {
    let task = arges_tasks::find("addition").unwrap();
    let answer = task.solve(&task.generate(7, 1)).answer;
    let script = Arc::new(Script::new(&[(&answer, Some(2))]));
    let trajectory = play(&script, "addition", 4000).unwrap();
    assert_eq!(trajectory.reward, 1.0, "{}", trajectory.reason);
    assert_eq!(trajectory.turns.len(), 1);
    let sampled = trajectory.sampled();
    assert_eq!(trajectory.versions, [(1, 2), (2, sampled - 2)]);
    let asked = script.asked.lock().unwrap();
    let start = trajectory.turns[0].start;
    assert_eq!(asked[1].prompt, trajectory.tokens[..start + 2]);
    assert_eq!((asked[1].seed, asked[1].max_tokens), (asked[0].seed, asked[0].max_tokens - 2));
}

#[test]
fn what_cannot_be_used_is_refused_with_its_reason() {
    let forgetful = Arc::new(Script { forgets: true, ..Script::new(&[("4", None)]) });
    assert!(matches!(play(&forgetful, "addition", 4000), Err(EpisodeError::Unusable(_))));
    let script = Arc::new(Script::new(&[("4", None)]));
    assert!(matches!(play(&script, "addition", 10), Err(EpisodeError::TooLong { longest: 10, .. })));
    assert!(matches!(play(&script, "no_such_task", 99), Err(EpisodeError::NoTask(_))));
}

/// Answers questions: the likeliest answer is "plain", others are by their seed.
struct Answers {
    talk: Talk,
    asked: Mutex<Vec<Turn>>,
}

impl Policy for Answers {
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>> {
        let text = match turn.greedy {
            true => "plain",
            false => ["good", "plain", "bad", "<think>good"][turn.seed as usize % 4],
        };
        let mut tokens = self.talk.tokenizer().encode(text).unwrap();
        tokens.push(self.talk.tokenizer().end_token().unwrap());
        self.asked.lock().unwrap().push(turn);
        let (logprobs, versions) = (vec![-0.5; tokens.len()], vec![0; tokens.len()]);
        Box::pin(async {
            Ok(Sampled { tokens, logprobs, versions, experts: Vec::new(), end: TurnEnd::Stop })
        })
    }
}

/// Says which of "good", "bad" and others is better; of a prompt with "unknown" nothing.
fn verdict(request: &Value) -> Option<(u16, String)> {
    let told = request["messages"][0]["content"].as_str().unwrap();
    let answer = |name: &str| {
        let (_, rest) = told.split_once(&format!("[answer {name}]\n")).unwrap();
        match rest.split('\n').next().unwrap() {
            "good" => 2,
            "bad" => 0,
            _ => 1,
        }
    };
    match answer("A").cmp(&answer("B")) {
        _ if told.contains("unknown") => said("I cannot tell."),
        std::cmp::Ordering::Less => said("Verdict: B"),
        std::cmp::Ordering::Equal => said("Verdict: tie"),
        std::cmp::Ordering::Greater => said("Verdict: A"),
    }
}

/// Outcomes of twelve answers to the question of each of these lines, a group each.
fn judged(url: &str, lines: &str) -> (Vec<Played>, Arc<Answers>) {
    let directory = tempfile::tempdir().unwrap();
    let prompts = directory.path().join("prompts.jsonl");
    std::fs::write(&prompts, lines).unwrap();
    let text = format!(
        "run = 'r'\nbatches = 1\n[model]\nfrom = 'm'\n[rollout]\nprompts = 2\nresponses = 2\n[update]\n\
         max_tokens = 300\nupdates = 1\n[[window]]\ntokens = 100\n[[task]]\nname = 'general'\nprompts = \
         {prompts:?}\n[reward_model]\nurl = '{url}'\nmodel = 'judge'\nretries = 0\ntimeout = 5\n"
    );
    let config = RlConfig::from_toml(&text, Path::new("x.toml")).unwrap();
    let answers = Arc::new(Answers { talk: talk(), asked: Mutex::default() });
    let player = Player::new(Arc::clone(&answers) as _, talk(), LIMITS);
    let rollouts = Rollouts::new(player.with_judged(Judged::open(&config).unwrap()), 1).unwrap();
    let count = 12 * lines.lines().count() as u64;
    for number in 0..count {
        let (group, member) = (number / 12, number as u32 % 12);
        rollouts.submit(Job { group, member, seed: group, sampling_seed: number, ..job("general") });
    }
    let played = (0..count).map(|_| rollouts.next(Duration::from_secs(20)).expect("an outcome"));
    (played.collect(), answers)
}

#[test]
fn answers_are_judged_against_the_file_s_reference_or_the_likeliest_answer() {
    let (url, requests) = endpoint(Box::new(verdict));
    let lines = "{\"prompt\": \"Say something.\"}\n{\"prompt\": \"And this?\", \"reference\": \"good\"}\n";
    let (played, answers) = judged(&url, lines);
    let mut seen = std::collections::BTreeSet::new();
    for Played { job, outcome } in played {
        let trajectory = outcome.unwrap();
        let text = talk().text(&trajectory.tokens[trajectory.turns[0].clone()]);
        let expected = match (text.as_str(), job.group) {
            ("good", group) => 1.0 - group as f64,
            ("plain", group) => -(group as f64),
            ("bad" | "<think>good", _) => -1.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(trajectory.reward, expected, "{text}: {}", trajectory.reason);
        let prompt = talk().tokenizer().decode(&trajectory.tokens[..trajectory.turns[0].start]);
        assert!(prompt.contains(["Say something.", "And this?"][job.group as usize]), "{prompt}");
        seen.insert((job.group, text));
    }
    assert_eq!(seen.len(), 8, "all answers occur: {seen:?}");
    // One reference for the first group, none for the second.
    assert_eq!(answers.asked.lock().unwrap().iter().filter(|turn| turn.greedy).count(), 1);
    // The judge read no thinking.
    assert!(requests.try_iter().all(|request| !request.to_string().contains("think")));
}

#[test]
fn what_the_judge_does_not_tell_is_lost_and_no_draw() {
    let (url, _requests) = endpoint(Box::new(verdict));
    let lines = "{\"prompt\": \"unknown\", \"reference\": \"good\"}\n{\"prompt\": \"known\", \"reference\": \"good\"}\n";
    for Played { job, outcome } in judged(&url, lines).0 {
        match outcome {
            Ok(trajectory) => assert!(job.group == 1 || trajectory.reward <= 0.0),
            Err(EpisodeError::Unjudged(reason)) => assert!(job.group == 0 && reason.contains("no verdict")),
            Err(error) => panic!("{error}"),
        }
    }
    let (url, _requests) = endpoint(Box::new(|_| Some((401, "no key".to_owned()))));
    let (played, _) = judged(&url, "{\"prompt\": \"known\"}\n");
    let lost = played.iter().filter_map(|played| played.outcome.as_ref().err());
    let lost: Vec<String> = lost.map(ToString::to_string).collect();
    assert!(!lost.is_empty() && lost.iter().all(|reason| reason.contains("401")), "{lost:?}");
}

#[test]
fn a_line_that_is_no_question_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = "{\"prompt\": \"a\"}\n\n{\"promt\": \"b\"}\n";
    let path = directory.path().join("p.jsonl");
    std::fs::write(&path, text).unwrap();
    let error = crate::rl::judged::read(&path).unwrap_err().to_string();
    assert!(error.contains("p.jsonl, line 3: unknown field `promt`"), "{error}");
    std::fs::write(&path, "\n").unwrap();
    assert!(crate::rl::judged::read(&path).unwrap_err().to_string().ends_with("has no line"));
}
