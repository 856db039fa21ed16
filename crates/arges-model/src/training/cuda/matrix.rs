//! Which parameters make up the matrices of products.

use crate::config::{AttentionKind, Config};
use crate::params::{LayerParam, Param};

/// The matrices of a layer as products have them: of several parameters, outputs one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Matrix {
    /// Everything that attention makes of its input.
    Projections,
    /// Attention's output projection.
    Out,
    /// Gates and ups of all experts, in turn.
    GateUp,
    /// Down projections of all experts.
    Down,
    /// The same of a shared MLP.
    SharedGateUp,
    SharedDown,
}

impl Matrix {
    pub(super) const ALL: [Self; 6] =
        [Self::Projections, Self::Out, Self::GateUp, Self::Down, Self::SharedGateUp, Self::SharedDown];

    /// Its parameters in a layer; those of one expert.
    pub(super) fn params(self, config: &Config, layer: usize, expert: usize) -> Vec<Param> {
        use LayerParam as P;
        let lightning = config.attention[layer] == AttentionKind::Lightning;
        let params = match self {
            Self::Projections if lightning => vec![P::LightningQkv, P::LightningGate],
            Self::Projections => vec![P::Query, P::Key, P::Value],
            Self::Out if lightning => vec![P::LightningOut],
            Self::Out => vec![P::Output],
            Self::GateUp => vec![P::ExpertGate(expert), P::ExpertUp(expert)],
            Self::Down => vec![P::ExpertDown(expert)],
            Self::SharedGateUp => vec![P::SharedGate, P::SharedUp],
            Self::SharedDown => vec![P::SharedDown],
        };
        params.into_iter().map(|param| Param::Layer(layer, param)).collect()
    }

    pub(super) fn is_gated(self) -> bool {
        matches!(self, Self::GateUp | Self::SharedGateUp)
    }

    /// Whether each expert has one.
    pub(super) fn is_experts(self) -> bool {
        matches!(self, Self::GateUp | Self::Down)
    }
}
