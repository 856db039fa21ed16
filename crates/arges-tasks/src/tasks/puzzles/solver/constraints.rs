//! Constraints that several puzzles share.

use super::{Constraint, Contradiction, Domains, Set, members};

/// All variables differ. Where there are as many values as variables, each value is somewhere.
pub(in super::super) struct Distinct(pub Vec<usize>);

impl Constraint for Distinct {
    fn variables(&self) -> &[usize] {
        &self.0
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        self.decided_values(domains)?;
        let union = self.0.iter().fold(0, |union, variable| union | domains.get(*variable));
        match (union.count_ones() as usize).cmp(&self.0.len()) {
            std::cmp::Ordering::Less => Err(Contradiction),
            std::cmp::Ordering::Equal => self.values_with_one_place(domains),
            std::cmp::Ordering::Greater => Ok(()),
        }
    }
}

impl Distinct {
    /// A variable's value is no other variable's, until no further variable gets a value by that.
    fn decided_values(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let mut spread: Set = 0;
        loop {
            let (mut decided, mut twice): (Set, Set) = (0, 0);
            for variable in &self.0 {
                let set = domains.get(*variable);
                if set.is_power_of_two() {
                    twice |= decided & set;
                    decided |= set;
                }
            }
            if twice != 0 {
                return Err(Contradiction);
            }
            if decided == spread {
                return Ok(());
            }
            spread = decided;
            for variable in &self.0 {
                if !domains.get(*variable).is_power_of_two() {
                    domains.keep(*variable, !decided)?;
                }
            }
        }
    }

    /// A value with a single place left is there.
    fn values_with_one_place(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let (mut once, mut twice): (Set, Set) = (0, 0);
        for variable in &self.0 {
            let set = domains.get(*variable);
            twice |= once & set;
            once |= set;
        }
        let single = once & !twice;
        for variable in &self.0 {
            let set = domains.get(*variable);
            if set & single != 0 && !set.is_power_of_two() {
                domains.keep(*variable, single)?;
            }
        }
        Ok(())
    }
}

/// The first variable is less than the second.
pub(in super::super) struct Less([usize; 2]);

impl Less {
    pub fn new(smaller: usize, larger: usize) -> Self {
        Self([smaller, larger])
    }
}

impl Constraint for Less {
    fn variables(&self) -> &[usize] {
        &self.0
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let [smaller, larger] = self.0;
        let (_, highest) = domains.bounds(larger);
        domains.keep(smaller, (1 << highest) - 1)?;
        let (lowest, _) = domains.bounds(smaller);
        domains.keep(larger, !((1 << lowest) | ((1 << lowest) - 1)))
    }
}

/// The sum of each variable times its factor is the total.
pub(in super::super) struct Linear {
    variables: Vec<usize>,
    factors: Vec<i64>,
    total: i64,
}

impl Linear {
    /// A variable may come several times; its factors add up.
    pub fn new(terms: impl IntoIterator<Item = (i64, usize)>, total: i64) -> Self {
        let (mut variables, mut factors): (Vec<usize>, Vec<i64>) = (Vec::new(), Vec::new());
        for (factor, variable) in terms {
            match variables.iter().position(|known| *known == variable) {
                Some(place) => factors[place] += factor,
                None => {
                    variables.push(variable);
                    factors.push(factor);
                }
            }
        }
        Self { variables, factors, total }
    }

    /// The plain sum of the variables.
    pub fn sum(variables: impl IntoIterator<Item = usize>, total: i64) -> Self {
        Self::new(variables.into_iter().map(|variable| (1, variable)), total)
    }

    /// The smallest and largest value of a term.
    fn bounds(&self, domains: &Domains, term: usize) -> (i64, i64) {
        let (low, high) = domains.bounds(self.variables[term]);
        let (a, b) = (self.factors[term] * i64::from(low), self.factors[term] * i64::from(high));
        (a.min(b), a.max(b))
    }
}

impl Constraint for Linear {
    fn variables(&self) -> &[usize] {
        &self.variables
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        loop {
            let (mut low, mut high) = (0, 0);
            for term in 0..self.variables.len() {
                let (least, most) = self.bounds(domains, term);
                low += least;
                high += most;
            }
            if low > self.total || high < self.total {
                return Err(Contradiction);
            }
            let mut changed = false;
            for (term, (variable, factor)) in self.variables.iter().zip(&self.factors).enumerate() {
                let (least, most) = self.bounds(domains, term);
                if least == most {
                    continue;
                }
                // What is left for this term when all others are at their most and at their least.
                let room = (self.total - (high - most), self.total - (low - least));
                if room.0 <= least && most <= room.1 {
                    continue;
                }
                let fits = |value: &u32| (room.0..=room.1).contains(&(factor * i64::from(*value)));
                let set = domains.get(*variable);
                let kept = members(set).filter(fits).fold(0, |kept: Set, value| kept | 1 << value);
                domains.keep(*variable, kept)?;
                // The sums above hold for the domains as they were, which are never narrower: what they rule out
                // stays ruled out, and another round sees the rest.
                changed |= kept != set;
            }
            if !changed {
                return Ok(());
            }
        }
    }
}

/// A rule over few variables, given as a predicate over the values of the first of them: false only where no values
/// of the others can make it hold. Every assignment within the domains is looked at.
pub(in super::super) struct Enumerated<F> {
    variables: Vec<usize>,
    admits: F,
}

impl<F: Fn(&[u32]) -> bool> Enumerated<F> {
    pub fn new(variables: Vec<usize>, admits: F) -> Self {
        Self { variables, admits }
    }

    /// Whether some assignment starts with `prefix`; adds the values of those that do to `supported`.
    fn extend(&self, domains: &Domains, prefix: &mut Vec<u32>, supported: &mut [Set]) -> bool {
        let place = prefix.len();
        let Some(variable) = self.variables.get(place) else {
            return true;
        };
        let mut any = false;
        for value in members(domains.get(*variable)) {
            prefix.push(value);
            if (self.admits)(prefix) && self.extend(domains, prefix, supported) {
                supported[place] |= 1 << value;
                any = true;
            }
            prefix.pop();
        }
        any
    }
}

impl<F: Fn(&[u32]) -> bool> Constraint for Enumerated<F> {
    fn variables(&self) -> &[usize] {
        &self.variables
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let mut supported = vec![0; self.variables.len()];
        self.extend(domains, &mut Vec::with_capacity(self.variables.len()), &mut supported);
        self.variables.iter().zip(supported).try_for_each(|(variable, set)| domains.keep(*variable, set))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Problem, values};
    use super::*;

    /// All solutions, which the search must find whatever the constraints rule out early.
    fn solutions(variables: usize, domain: Set, add: impl FnOnce(&mut Problem)) -> Vec<Vec<u32>> {
        let mut problem = Problem::new(variables, domain);
        add(&mut problem);
        let mut found = problem.solutions(usize::MAX);
        assert!(found.complete);
        found.solutions.sort();
        found.solutions
    }

    /// All assignments that satisfy the predicate.
    fn assignments(variables: u32, low: u32, high: u32, holds: impl Fn(&[u32]) -> bool) -> Vec<Vec<u32>> {
        let width = high - low + 1;
        let all = (0..width.pow(variables)).map(|code| {
            (0..variables).rev().map(|place| low + code / width.pow(place) % width).collect::<Vec<u32>>()
        });
        all.filter(|assignment| holds(assignment)).collect()
    }

    fn differ(assignment: &[u32]) -> bool {
        (1..assignment.len()).all(|place| !assignment[..place].contains(&assignment[place]))
    }

    #[test]
    fn distinct_keeps_exactly_the_assignments_without_repetition() {
        for high in 2..=5 {
            let found = solutions(4, values(1, high), |problem| problem.add(Distinct((0..4).collect())));
            assert_eq!(found, assignments(4, 1, high, differ));
        }
    }

    #[test]
    fn less_keeps_exactly_the_ordered_pairs() {
        let found = solutions(2, values(0, 4), |problem| problem.add(Less::new(1, 0)));
        assert_eq!(found, assignments(2, 0, 4, |pair| pair[1] < pair[0]));
    }

    #[test]
    fn linear_keeps_exactly_the_assignments_of_that_total() {
        for total in -12..=30 {
            let linear = Linear::new([(3, 0), (-2, 1), (1, 2), (1, 2)], total);
            let found = solutions(3, values(0, 5), |problem| problem.add(linear));
            let holds = |a: &[u32]| 3 * i64::from(a[0]) - 2 * i64::from(a[1]) + 2 * i64::from(a[2]) == total;
            assert_eq!(found, assignments(3, 0, 5, holds));
        }
    }

    #[test]
    fn enumerated_keeps_exactly_the_admitted_assignments() {
        let admits = |prefix: &[u32]| prefix.len() < 3 || prefix[0] * prefix[1] == prefix[2];
        let found = solutions(3, values(0, 6), |problem| problem.add(Enumerated::new(vec![0, 1, 2], admits)));
        assert_eq!(found, assignments(3, 0, 6, admits));
    }

    #[test]
    fn constraints_hold_together() {
        let found = solutions(4, values(1, 6), |problem| {
            problem.add(Distinct((0..4).collect()));
            problem.add(Linear::sum(0..4, 15));
            problem.add(Less::new(0, 3));
        });
        let holds = |a: &[u32]| differ(a) && a.iter().sum::<u32>() == 15 && a[0] < a[3];
        assert_eq!(found, assignments(4, 1, 6, holds));
    }
}
