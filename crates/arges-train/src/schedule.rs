//! The learning rate over time.

use crate::config::{ScheduleConfig, ScheduleKind};

/// The learning rate of a step, from 1, in a run of `steps`, as a share of the highest:
/// ```text
/// warm-up    step / warmup_steps
/// constant   1
/// cosine     min + (1 - min) (1 + cos(pi t)) / 2,   t from 0 to 1 over decay_steps after the warm-up, then min
/// wsd        1, then 1 - (1 - min) t,               t from 0 to 1 over the last decay_steps
/// ```
pub fn share(schedule: &ScheduleConfig, steps: u64, step: u64) -> f64 {
    if step <= schedule.warmup_steps {
        return step as f64 / schedule.warmup_steps as f64;
    }
    let after = steps.saturating_sub(schedule.warmup_steps);
    let lowest = schedule.min_lr_ratio;
    match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine => {
            let decay = schedule.decay_steps.unwrap_or(after).max(1);
            let t = ((step - schedule.warmup_steps) as f64 / decay as f64).min(1.0);
            lowest + (1.0 - lowest) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
        }
        ScheduleKind::Wsd => {
            let decay = schedule.decay_steps.unwrap_or(steps.div_ceil(10)).min(after).max(1);
            let t = (step.min(steps) + decay).saturating_sub(steps) as f64 / decay as f64;
            1.0 - (1.0 - lowest) * t
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: u64, decay: Option<u64>) -> ScheduleConfig {
        ScheduleConfig { kind, warmup_steps: warmup, decay_steps: decay, min_lr_ratio: 0.1 }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn every_schedule_rises_linearly_from_zero_in_the_warm_up() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            let schedule = schedule(kind, 10, None);
            for step in 1..=10 {
                assert!(close(share(&schedule, 100, step), step as f64 / 10.0));
            }
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_nearly_the_highest_rate() {
        assert!(close(share(&schedule(ScheduleKind::Constant, 0, None), 100, 1), 1.0));
        assert!(close(share(&schedule(ScheduleKind::Wsd, 0, Some(10)), 100, 1), 1.0));
        assert!(share(&schedule(ScheduleKind::Cosine, 0, None), 1000, 1) > 0.999);
    }

    #[test]
    fn cosine_is_half_a_wave_and_then_stays() {
        let schedule = schedule(ScheduleKind::Cosine, 10, Some(60));
        assert!(close(share(&schedule, 100, 40), 0.55), "half-way it is half-way");
        let quarter = 0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * 0.25).cos());
        assert!(close(share(&schedule, 100, 25), quarter));
        for step in 70..=100 {
            assert!(close(share(&schedule, 100, step), 0.1));
        }
        let whole = ScheduleConfig { decay_steps: None, ..schedule };
        assert!(close(share(&whole, 100, 100), 0.1) && share(&whole, 100, 99) > 0.1);
    }

    #[test]
    fn wsd_stays_at_the_highest_rate_and_falls_linearly_at_the_end() {
        let schedule = schedule(ScheduleKind::Wsd, 10, Some(20));
        for step in 11..=80 {
            assert!(close(share(&schedule, 100, step), 1.0));
        }
        assert!(close(share(&schedule, 100, 90), 0.55));
        assert!(close(share(&schedule, 100, 100), 0.1));
        let tenth = ScheduleConfig { decay_steps: None, ..schedule };
        assert!(close(share(&tenth, 100, 90), 1.0) && close(share(&tenth, 100, 95), 0.55));
    }

    #[test]
    fn a_decay_longer_than_what_is_left_begins_after_the_warm_up() {
        let schedule = schedule(ScheduleKind::Wsd, 98, None);
        assert!(close(share(&schedule, 100, 98), 1.0));
        assert!(close(share(&schedule, 100, 99), 0.55) && close(share(&schedule, 100, 100), 0.1));
    }
}
