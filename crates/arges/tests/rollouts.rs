//! Rollouts from other servers: the same bits as the trainer's own, whoever is lost on the way.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arges_engine::{Engine, EngineOptions, RunningCaches};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::training::{Parameters, Trainer, TrainingPlan};
use arges_model::{Checkpoint, NewWeights};
use arges_text::Tokenizer;
use arges_train::rl::policy::{LocalPolicy, Policy, Sampled, Turn, TurnEnd};
use arges_train::rl::remote::{Remote, RemoteConfig};
use tempfile::TempDir;

const KEY: &str = "of the trainer";
const WAIT: Duration = Duration::from_secs(60);

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano")
}

/// `arges serve` in a process of its own; killed at the end, or before.
struct Server {
    address: SocketAddr,
    process: Child,
}

impl Server {
    fn start(address: SocketAddr, key: &Path) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_arges"))
            .args(["serve", "--dtype", "f32", "--threads", "1", "--port", &address.port().to_string()])
            .args(["--max-sequences", "8", "--context", "1024", "--admin-key-file"])
            .arg(key)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { address, process }
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that is free now.
fn address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A trainer with its own engine and a directory for its weights.
struct Run {
    directory: TempDir,
    trainer: Trainer,
    local: Arc<LocalPolicy>,
}

impl Run {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), format!("{KEY}\n")).unwrap();
        let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(1), isa: None }).unwrap());
        let parameters = Parameters::full(&Checkpoint::open(&nano()).unwrap()).unwrap();
        let trainer = Trainer::new(parameters, Compute::F32, cpu, TrainingPlan::new(64, 1)).unwrap();
        let options = EngineOptions {
            max_sequences: 8,
            max_tokens: 8 * 1024,
            step_tokens: 64,
            max_queue: 64,
            max_context: 1024,
            max_logit_rows: 8,
            exact: true,
            max_drafts: 0,
            prefix_cache: None,
        };
        let tokenizer = Tokenizer::from_dir(&nano()).unwrap();
        let engine = Engine::start(trainer.shared_model(), Some(tokenizer), options).unwrap();
        Self { directory, trainer, local: Arc::new(LocalPolicy::new(engine, RunningCaches::Recompute)) }
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    fn config(&self, endpoints: Vec<String>) -> RemoteConfig {
        RemoteConfig {
            admin_key_file: Some(self.key()),
            interval: 0.1,
            answer_timeout: 2.0,
            token_timeout: 10.0,
            ..RemoteConfig::new(endpoints, self.directory.path().join("weights"))
        }
    }

    fn remote(&self, config: RemoteConfig) -> Remote {
        Remote::open(config, Compute::F32, None).unwrap()
    }

    /// Moves the weights a little and brings them everywhere under a number.
    fn step(&mut self, remote: &mut Remote, version: u64) {
        self.trainer.parameters_mut().values_mut().iter_mut().step_by(7).for_each(|value| *value *= 1.01);
        self.trainer.publish().unwrap();
        self.local.publish(NewWeights::Model(self.trainer.shared_model().into()), version).unwrap();
        remote.publish(version, self.trainer.parameters(), self.trainer.cpu()).unwrap();
    }
}

fn turn(seed: u64, max_tokens: usize) -> Turn {
    let prompt = (0..20).map(|i| 100 + (seed as u32 * 31 + i * 7) % 900).collect();
    Turn {
        experts: false,
        prompt,
        max_tokens,
        seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        greedy: false,
        repetition: None,
    }
}

/// Samples to the end, however often it is broken off.
async fn to_the_end(policy: &dyn Policy, turn: Turn) -> (Sampled, usize) {
    let (start, max) = (turn.prompt.len(), turn.max_tokens);
    let mut turn = turn;
    let end = TurnEnd::Aborted;
    let mut all = Sampled { tokens: vec![], logprobs: vec![], versions: vec![], experts: vec![], end };
    let mut pieces = 0;
    loop {
        let sampled = policy.sample(turn.clone()).await.unwrap();
        pieces += 1;
        turn.prompt.extend(&sampled.tokens);
        all.tokens.extend(sampled.tokens);
        all.logprobs.extend(sampled.logprobs);
        all.versions.extend(sampled.versions);
        // Those of the prompt come again.
        all.experts.extend(sampled.experts.get(all.experts.len()..).unwrap_or_default());
        all.end = sampled.end;
        turn.max_tokens = max - (turn.prompt.len() - start);
        if all.end == TurnEnd::Aborted && turn.max_tokens == 0 {
            all.end = TurnEnd::Length;
        }
        if all.end != TurnEnd::Aborted {
            return (all, pieces);
        }
    }
}

fn bits(sampled: &Sampled) -> (Vec<u32>, Vec<u32>, Vec<u64>, Vec<u8>, TurnEnd) {
    let logprobs = sampled.logprobs.iter().map(|logprob| logprob.to_bits()).collect();
    (sampled.tokens.clone(), logprobs, sampled.versions.clone(), sampled.experts.clone(), sampled.end)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A server that says that it has the weights, takes turns and then says nothing.
fn mute() -> String {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut request = vec![0; 65536];
                let read = stream.read(&mut request).unwrap_or(0);
                if request[..read].starts_with(b"POST /v1/completions") {
                    std::thread::sleep(Duration::from_secs(3600));
                }
                let body = r#"{"weight_version": 1, "paused": false}"#;
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            });
        }
    });
    url
}

#[test]
fn turns_from_another_server_are_the_trainers_own_bit_for_bit() {
    let mut run = Run::new();
    let server = Server::start(address(), &run.key());
    let mut remote = run.remote(run.config(vec![server.url()]));
    for version in [3, 4] {
        run.step(&mut remote, version);
        assert!(remote.endpoints().wait_ready(1, WAIT), "{:?}", remote.endpoints().states());
        runtime().block_on(async {
            for seed in 0..3 {
                let turn = Turn { experts: seed > 0, ..turn(seed, 40) };
                let (there, pieces) = to_the_end(&**remote.endpoints(), turn.clone()).await;
                let (here, _) = to_the_end(&*run.local, turn).await;
                assert_eq!(bits(&there), bits(&here));
                assert_eq!(pieces, 1);
                // Two of each layer for every token but the last.
                let told = if seed > 0 { (20 + there.tokens.len() - 1) * 8 * 2 } else { 0 };
                assert_eq!(there.experts.len(), told);
                assert!(there.versions.iter().all(|v| *v == version));
            }
        });
    }
}

#[test]
fn a_turn_whose_endpoint_is_killed_goes_on_elsewhere_as_if_nothing_had_happened() {
    let mut run = Run::new();
    let mut servers: Vec<Server> = (0..2).map(|_| Server::start(address(), &run.key())).collect();
    let mut remote = run.remote(run.config(servers.iter().map(Server::url).collect()));
    run.step(&mut remote, 1);
    assert!(remote.endpoints().wait_ready(2, WAIT), "{:?}", remote.endpoints().states());
    let endpoints = Arc::clone(remote.endpoints());
    let runtime = runtime();
    let under_way = runtime.spawn(async move { to_the_end(&*endpoints, turn(5, 900)).await });
    let busy = loop {
        let states = remote.endpoints().states();
        if let Some(busy) = states.iter().position(|state| state.turns > 0) {
            break busy;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    std::thread::sleep(Duration::from_millis(20));
    servers[busy].kill();
    let (there, pieces) = runtime.block_on(under_way).unwrap();
    let (here, _) = runtime.block_on(to_the_end(&*run.local, turn(5, 900)));
    assert_eq!(bits(&there), bits(&here));
    let states = remote.endpoints().states();
    assert!(!states[busy].ready && states[1 - busy].ready, "{pieces} pieces, {states:?}");
    // It comes back at its old address, with the weights it was begun with, and is given the right ones.
    servers[busy] = Server::start(servers[busy].address, &run.key());
    assert!(remote.endpoints().wait_ready(2, WAIT), "{:?}", remote.endpoints().states());
    assert_eq!(remote.endpoints().states()[busy].version, Some(1));
}

#[test]
fn an_endpoint_that_falls_silent_costs_its_time_limit_and_nothing_else() {
    let mut run = Run::new();
    let local: Arc<dyn Policy> = Arc::clone(&run.local) as _;
    // The first place is the endpoint's, which is as little busy.
    let config = RemoteConfig { token_timeout: 0.3, turns: 1000, ..run.config(vec![mute()]) };
    let mut remote = Remote::open(config, Compute::F32, Some((local, 1))).unwrap();
    run.step(&mut remote, 1);
    assert!(remote.endpoints().wait_ready(1, WAIT));
    let start = Instant::now();
    let (there, _) = runtime().block_on(to_the_end(&**remote.endpoints(), turn(2, 20)));
    let (here, _) = runtime().block_on(to_the_end(&*run.local, turn(2, 20)));
    assert_eq!(bits(&there), bits(&here));
    assert!(start.elapsed() > Duration::from_millis(300));
    assert_eq!(remote.endpoints().states()[0].losses, 1);
}

#[test]
#[ignore = "a minute of killing servers; CONTRIBUTING.md has the command"]
fn servers_killed_at_random_moments_lose_and_double_no_turn() {
    let mut run = Run::new();
    let mut servers: Vec<Server> = (0..2).map(|_| Server::start(address(), &run.key())).collect();
    let mut remote = run.remote(run.config(servers.iter().map(Server::url).collect()));
    run.step(&mut remote, 1);
    assert!(remote.endpoints().wait_ready(2, WAIT));
    let runtime = runtime();
    let mut random = std::collections::hash_map::RandomState::new();
    let (mut kills, mut pieces) = (0, 0);
    for round in 0..6 {
        let turns: Vec<_> = (0..8)
            .map(|i| {
                let endpoints = Arc::clone(remote.endpoints());
                runtime.spawn(async move { to_the_end(&*endpoints, turn(round * 8 + i, 300)).await })
            })
            .collect();
        for _ in 0..2 {
            use std::hash::BuildHasher;
            let draw = random.hash_one(kills);
            random = std::collections::hash_map::RandomState::new();
            std::thread::sleep(Duration::from_millis(200 + draw % 1500));
            let which = (draw >> 32) as usize % 2;
            servers[which].kill();
            servers[which] = Server::start(servers[which].address, &run.key());
            kills += 1;
        }
        for (i, turns) in (0..).zip(turns) {
            let (there, broken) = runtime.block_on(turns).unwrap();
            let (here, _) = runtime.block_on(to_the_end(&*run.local, turn(round * 8 + i, 300)));
            assert_eq!(bits(&there), bits(&here), "round {round}, turn {i}");
            pieces += broken - 1;
        }
        run.step(&mut remote, round + 2);
    }
    println!("{kills} kills, {pieces} turns broken off, all 48 whole");
}
