//! Tasks whose answers can be checked: puzzles, arithmetic, logic, language and tool use, each with a generator, a
//! verifier and a solver, for reinforcement learning and for evaluation; and a grader of mathematical answers.
//!
//! - [`Task`]: `generate` an [`Instance`], `verify` a response to it, `solve` it. [`all`] and [`find`] give the tasks;
//!   each is one file of `tasks/`, and a line of the registry.
//! - [`Episode`]: an instance in turns, for tasks of one turn and of several alike; [`World`] is what tools act on.
//! - [`needle_of_length`]: a task of long context in any length, beside those of its difficulties.
//! - [`Random`]: the generator behind every instance. The same task, seed and difficulty give the same instance on
//!   every machine.
//! - [`response`]: a model's response, taken apart into its thinking and its final answer.
//! - [`math`]: is a free-form mathematical answer the expected one?
//!
//! - [`sandbox`]: runs programs that a model wrote.
//!
//! Verifiers parse; what a model wrote as code is evaluated in the sandbox alone, and all work is bounded whatever it
//! wrote. The crate depends on none of the workspace's other crates, and touches files and processes in `sandbox` alone.
//!
//! The property tests take 50 instances of each task and difficulty. All 1,000:
//! `cargo test --release -p arges-tasks -- --ignored`.
#![forbid(unsafe_code)]

mod episode;
pub mod math;
mod random;
mod rational;
mod registry;
pub mod response;
pub mod sandbox;
mod task;
mod tasks;

pub use episode::{Episode, Step, ToolResult, World};
pub use random::Random;
pub use registry::{all, find};
pub use task::{Instance, Solution, Task, Verdict};
pub use tasks::language::needle::needle_of_length;
