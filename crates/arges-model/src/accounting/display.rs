//! The accounting as a table for a terminal.

use std::fmt;

use super::{Accounting, Flops, TokenFlops};

impl fmt::Display for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layers, parameters, memory) = (&self.layers, &self.parameters, &self.memory);
        writeln!(f, "{}", self.model_type)?;
        section(f, "Layers")?;
        line(f, "lightning attention", layers.lightning)?;
        line(f, "softmax attention", layers.softmax)?;
        line(f, "experts a layer", format!("{}, {} a token", layers.experts, layers.experts_per_token))?;
        section(f, "Parameters")?;
        line(f, "total", count(parameters.total))?;
        let with_head = format!("{} with the head", count(parameters.active_with_head));
        line(f, "active per token", format!("{} ({with_head})", count(parameters.active)))?;
        for (name, weights) in [
            ("  embedding", parameters.embedding),
            ("  head", parameters.head),
            ("  lightning attention", parameters.lightning),
            ("  softmax attention", parameters.softmax),
            ("  experts", parameters.experts),
            ("  routers", parameters.routers),
            ("  shared MLP", parameters.shared_mlp),
            ("  norms", parameters.norms),
        ] {
            if weights > 0 {
                line(f, name, count(weights))?;
            }
        }
        section(f, &format!("Memory at {} tokens of context, batch {}", self.context, self.batch))?;
        line(f, &format!("weights ({})", self.weight_dtype), bytes(memory.weights))?;
        let kv = format!("{} ({} a token)", bytes(memory.kv), bytes(memory.kv_per_token));
        line(f, &format!("keys and values ({})", self.kv_dtype), kv)?;
        let state = format!("{} ({} a sequence)", bytes(memory.state), bytes(memory.state_per_sequence));
        line(f, "linear state (f32)", state)?;
        line(f, "total", bytes(memory.total))?;
        self.flops.table(f, self.context)
    }
}

impl Flops {
    fn table(&self, f: &mut fmt::Formatter<'_>, context: u64) -> fmt::Result {
        section(f, &format!("FLOPs per token at {context} tokens of context"))?;
        writeln!(f, "  {:<26}{:>14}{:>14}", "", "prefill", "decode")?;
        for ((name, prefill), (_, decode)) in
            self.prefill_token.rows().into_iter().zip(self.decode_token.rows())
        {
            writeln!(f, "  {name:<26}{:>14}{:>14}", flops(prefill), flops(decode))?;
        }
        Ok(())
    }
}

impl TokenFlops {
    fn rows(&self) -> [(&'static str, f64); 6] {
        [
            ("projections", self.projections),
            ("experts", self.experts),
            ("lightning attention", self.lightning),
            ("softmax attention", self.softmax),
            ("head", self.head),
            ("total", self.total),
        ]
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    writeln!(f, "\n{title}")
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<26}{value}")
}

/// A number of weights in the units of the field: 456.1 B, 118.9 M.
fn count(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", " K", " M", " B", " T"])
}

fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

fn flops(n: f64) -> String {
    scaled(n, 1000.0, &["", " K", " M", " G", " T", " P"])
}

/// One decimal, and the largest unit in which the value is at least 1.
fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    // What would round to a full unit is shown in the next.
    while value >= base - 0.05 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 1 };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_take_the_largest_unit_that_keeps_them_at_one_or_more() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(999_960), "1.0 M");
        assert_eq!(count(456_089_655_296), "456.1 B");
        assert_eq!(bytes(40 * 1024), "40.0 KiB");
        assert_eq!(flops(3.7e8), "370.0 M");
    }
}
