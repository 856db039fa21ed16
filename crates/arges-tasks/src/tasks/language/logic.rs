//! Boolean formulas and a solver that tells its steps: what it supposed, what followed from which
//! formula, and where it met a contradiction. It serves the puzzles about liars and the tasks of
//! propositional logic.

/// A formula over variables numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Formula {
    Var(usize),
    Not(Box<Formula>),
    And(Vec<Formula>),
    Or(Vec<Formula>),
    Implies(Box<Formula>, Box<Formula>),
    Iff(Box<Formula>, Box<Formula>),
    /// So many of the formulas hold, no more and no fewer.
    Exactly(usize, Vec<Formula>),
}

impl Formula {
    /// The literal that says `variable` is `value`.
    pub(crate) fn literal(variable: usize, value: bool) -> Self {
        if value { Self::Var(variable) } else { Self::not(Self::Var(variable)) }
    }

    pub(crate) fn not(inner: Self) -> Self {
        Self::Not(Box::new(inner))
    }

    pub(crate) fn implies(premise: Self, conclusion: Self) -> Self {
        Self::Implies(Box::new(premise), Box::new(conclusion))
    }

    pub(crate) fn iff(left: Self, right: Self) -> Self {
        Self::Iff(Box::new(left), Box::new(right))
    }

    /// The formula's value where the known variables decide it.
    pub(crate) fn evaluate(&self, known: &[Option<bool>]) -> Option<bool> {
        match self {
            Self::Var(variable) => known[*variable],
            Self::Not(inner) => inner.evaluate(known).map(|value| !value),
            Self::And(parts) => all_of(parts.iter().map(|part| part.evaluate(known))),
            Self::Or(parts) => {
                let none = all_of(parts.iter().map(|part| part.evaluate(known).map(|value| !value)));
                none.map(|none| !none)
            }
            Self::Implies(premise, conclusion) => match (premise.evaluate(known), conclusion.evaluate(known))
            {
                (Some(false), _) | (_, Some(true)) => Some(true),
                (Some(true), Some(false)) => Some(false),
                _ => None,
            },
            Self::Iff(left, right) => Some(left.evaluate(known)? == right.evaluate(known)?),
            Self::Exactly(count, parts) => {
                let values: Vec<_> = parts.iter().map(|part| part.evaluate(known)).collect();
                let yes = values.iter().filter(|value| **value == Some(true)).count();
                let open = values.iter().filter(|value| value.is_none()).count();
                if yes > *count || yes + open < *count { Some(false) } else { (open == 0).then_some(true) }
            }
        }
    }

    /// The formula's value under an assignment of all its variables.
    pub(crate) fn holds(&self, values: &[bool]) -> bool {
        let known: Vec<Option<bool>> = values.iter().copied().map(Some).collect();
        self.evaluate(&known) == Some(true)
    }

    /// Adds the variables of the formula to `into`, each once, in the order they are met.
    pub(crate) fn collect_variables(&self, into: &mut Vec<usize>) {
        match self {
            Self::Var(variable) => {
                if !into.contains(variable) {
                    into.push(*variable);
                }
            }
            Self::Not(inner) => inner.collect_variables(into),
            Self::And(parts) | Self::Or(parts) | Self::Exactly(_, parts) => {
                parts.iter().for_each(|part| part.collect_variables(into));
            }
            Self::Implies(left, right) | Self::Iff(left, right) => {
                left.collect_variables(into);
                right.collect_variables(into);
            }
        }
    }
}

/// The conjunction of values that may be unknown.
fn all_of(values: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut result = Some(true);
    for value in values {
        match value {
            Some(false) => return Some(false),
            Some(true) => {}
            None => result = None,
        }
    }
    result
}

/// A step of a search. Supposing a variable takes back what was supposed of it before, and
/// everything that came after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Suppose {
        variable: usize,
        value: bool,
    },
    Follows {
        variable: usize,
        value: bool,
        formula: usize,
    },
    Contradiction {
        formula: usize,
    },
    /// All variables have values and all formulas hold.
    Solution,
}

/// The steps of a search and the solutions it met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    pub(crate) steps: Vec<Step>,
    pub(crate) solutions: Vec<Vec<bool>>,
}

/// Formulas with more unknown variables than this are left until more is known: looking at all
/// their values at once is no short step.
const MAX_UNKNOWN: usize = 4;

/// Looks for assignments of `variables` variables that make all formulas hold, until there are
/// `limit` of them or the search is through.
pub(crate) fn search(variables: usize, formulas: &[Formula], limit: usize) -> Search {
    let mentioned = formulas.iter().map(|formula| {
        let mut variables = Vec::new();
        formula.collect_variables(&mut variables);
        variables
    });
    let solver = Solver { formulas, mentioned: mentioned.collect(), limit };
    let mut search = Search::default();
    solver.descend(&mut vec![None; variables], &mut search);
    search
}

struct Solver<'f> {
    formulas: &'f [Formula],
    /// The variables of each formula.
    mentioned: Vec<Vec<usize>>,
    limit: usize,
}

impl Solver<'_> {
    /// Leaves `known` as it found it.
    fn descend(&self, known: &mut [Option<bool>], search: &mut Search) {
        let mut derived = Vec::new();
        if self.propagate(known, &mut derived, search) {
            match known.iter().position(Option::is_none) {
                None => {
                    search.steps.push(Step::Solution);
                    search.solutions.push(known.iter().map(|value| *value == Some(true)).collect());
                }
                Some(variable) => {
                    for value in [true, false] {
                        if search.solutions.len() < self.limit {
                            search.steps.push(Step::Suppose { variable, value });
                            known[variable] = Some(value);
                            self.descend(known, search);
                        }
                    }
                    known[variable] = None;
                }
            }
        }
        derived.into_iter().for_each(|variable| known[variable] = None);
    }

    /// Sets what follows from single formulas until nothing more does; false on a contradiction.
    fn propagate(&self, known: &mut [Option<bool>], derived: &mut Vec<usize>, search: &mut Search) -> bool {
        loop {
            let before = derived.len();
            for formula in 0..self.formulas.len() {
                let Some(consequences) = self.consequences(formula, known) else {
                    search.steps.push(Step::Contradiction { formula });
                    return false;
                };
                for (variable, value) in consequences {
                    known[variable] = Some(value);
                    derived.push(variable);
                    search.steps.push(Step::Follows { variable, value, formula });
                }
            }
            if derived.len() == before {
                return true;
            }
        }
    }

    /// The values that all ways to make a formula hold agree on; `None` where there is no way.
    fn consequences(&self, formula: usize, known: &mut [Option<bool>]) -> Option<Vec<(usize, bool)>> {
        match self.formulas[formula].evaluate(known) {
            Some(true) => return Some(Vec::new()),
            Some(false) => return None,
            None => {}
        }
        let open: Vec<usize> =
            self.mentioned[formula].iter().copied().filter(|variable| known[*variable].is_none()).collect();
        if open.len() > MAX_UNKNOWN {
            return Some(Vec::new());
        }
        // For each open variable: whether it is true, and whether it is false, in some way.
        let mut seen = vec![[false; 2]; open.len()];
        for ways in 0..1_u32 << open.len() {
            for (bit, variable) in open.iter().enumerate() {
                known[*variable] = Some(ways >> bit & 1 == 1);
            }
            if self.formulas[formula].evaluate(known) == Some(true) {
                (0..open.len()).for_each(|bit| seen[bit][(ways >> bit & 1) as usize] = true);
            }
        }
        open.iter().for_each(|variable| known[*variable] = None);
        if seen.first().is_some_and(|seen| *seen == [false; 2]) {
            return None;
        }
        let forced = open.into_iter().zip(seen).filter(|(_, seen)| seen[0] != seen[1]);
        Some(forced.map(|(variable, seen)| (variable, seen[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(variable: usize) -> Formula {
        Formula::Var(variable)
    }

    /// All assignments that make the formulas hold, by trying every one.
    fn brute_force(variables: usize, formulas: &[Formula]) -> Vec<Vec<bool>> {
        let assignment = |bits: u32| (0..variables).map(|bit| bits >> bit & 1 == 1).collect::<Vec<bool>>();
        let mut found: Vec<_> = (0..1_u32 << variables)
            .map(assignment)
            .filter(|values| formulas.iter().all(|formula| formula.holds(values)))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn the_search_finds_what_trying_everything_finds() {
        let samples = [
            vec![Formula::Or(vec![var(0), Formula::not(var(1))]), Formula::implies(var(1), var(2))],
            vec![Formula::Exactly(2, (0..6).map(var).collect()), Formula::iff(var(0), var(5))],
            vec![Formula::And(vec![var(0), Formula::not(var(0))])],
            vec![Formula::iff(var(0), Formula::not(var(0)))],
            vec![],
        ];
        for formulas in samples {
            let mut found = search(6, &formulas, usize::MAX).solutions;
            found.sort();
            assert_eq!(found, brute_force(6, &formulas), "{formulas:?}");
        }
    }

    #[test]
    fn steps_name_the_formula_a_value_follows_from() {
        let formulas = [Formula::implies(var(0), var(1)), var(0)];
        let steps = search(2, &formulas, 2).steps;
        let expected = [
            Step::Follows { variable: 0, value: true, formula: 1 },
            Step::Follows { variable: 1, value: true, formula: 0 },
            Step::Solution,
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn a_partly_known_formula_is_decided_as_soon_as_it_can_be() {
        let count = Formula::Exactly(1, vec![var(0), var(1), var(2)]);
        assert_eq!(count.evaluate(&[Some(true), Some(true), None]), Some(false));
        assert_eq!(count.evaluate(&[Some(true), None, None]), None);
        assert_eq!(Formula::Or(vec![var(0), var(1)]).evaluate(&[None, Some(true)]), Some(true));
    }
}
