//! What the reward model says, and whether it favours long answers.

use super::{Event, RlError, RlRun};
use crate::reward_model::LengthBias;
use crate::rl::config::BiasAction;
use crate::rl::groups::Outcome;
use crate::rl::metrics::Values;

impl RlRun {
    /// How answers were judged since the last batch, in the order of their groups.
    pub(super) fn judgements(&mut self, outcomes: &[Outcome]) -> Values {
        let unjudged = self.groups.take_unjudged();
        let Some(settings) = &self.config.reward_model else { return Values::new() };
        let watch = settings.length_bias;
        let cells = self.place.curriculum.cells();
        let bias =
            self.place.length_bias.get_or_insert_with(|| LengthBias::new(watch.window, watch.threshold));
        let (mut better, mut equal, mut worse) = (0, 0, 0);
        for outcome in outcomes.iter().filter(|outcome| cells[outcome.cell].judged) {
            for (reward, length) in outcome.rewards.iter().zip(&outcome.lengths) {
                bias.record(*reward, *length);
                let count = match *reward {
                    reward if reward > 0.0 => &mut better,
                    reward if reward < 0.0 => &mut worse,
                    _ => &mut equal,
                };
                *count += 1;
            }
        }
        let all = (better + equal + worse) as f64;
        let mut values =
            vec![("unjudged", unjudged as f64), ("biased", f64::from(u8::from(bias.is_biased())))];
        if all > 0.0 {
            let counts = [("better", better), ("equal", equal), ("worse", worse)];
            values.extend(counts.map(|(name, count)| (name, f64::from(count) / all)));
        }
        values.extend(bias.correlation().map(|correlation| ("length_correlation", correlation)));
        values.into_iter().map(|(name, value)| (format!("reward_model/{name}"), value)).collect()
    }

    /// Does what was asked for where rewards follow lengths. The watch begins anew then.
    pub(super) fn check_bias(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        let Some(settings) = &self.config.reward_model else { return Ok(()) };
        let watch = settings.length_bias;
        let Some(bias) = self.place.length_bias.take_if(|bias| bias.is_biased()) else { return Ok(()) };
        let correlation = bias.correlation().unwrap_or_default();
        tell(Event::Biased { correlation });
        match watch.action {
            BiasAction::Warn => Ok(()),
            BiasAction::Stop => {
                self.save(tell)?;
                Err(RlError::Biased { correlation, window: watch.window })
            }
        }
    }
}
