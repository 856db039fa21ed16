//! Experts that were chosen before, when tokens were sampled, and serve them once more.

use crate::config::Config;

/// In place of experts: a token chooses its own.
pub const OWN_CHOICE: u16 = u16::MAX;

/// Experts of the tokens of a batch, `[tokens, layers, k]`, best first; or none, so that all choose their own. Those of a
/// token that begin with [`OWN_CHOICE`] say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GivenExperts<'a>(pub &'a [u16]);

/// Those of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerExperts<'a> {
    given: &'a [u16],
    layer: usize,
    layers: usize,
    k: usize,
}

impl<'a> GivenExperts<'a> {
    pub const NONE: Self = Self(&[]);

    pub fn of_layer(self, layer: usize, config: &Config) -> LayerExperts<'a> {
        LayerExperts { given: self.0, layer, layers: config.attention.len(), k: config.experts_per_token }
    }
}

impl<'a> LayerExperts<'a> {
    pub fn of_token(self, token: usize) -> Option<&'a [u16]> {
        let first = (token * self.layers + self.layer) * self.k;
        let experts = self.given.get(first..first + self.k)?;
        (experts.first() != Some(&OWN_CHOICE)).then_some(experts)
    }
}
