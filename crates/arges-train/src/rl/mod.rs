//! Reinforcement learning with verifiable rewards.
pub mod advantage;
pub mod objective;
