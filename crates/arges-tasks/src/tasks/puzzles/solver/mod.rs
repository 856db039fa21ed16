//! A solver of finite domains: variables whose values are numbers from 0 to 63, constraints that rule values out, and
//! a depth-first search where they leave a choice. Every search is bounded by a number of guesses.
//!
//! [`constraints`] holds the constraints several puzzles share; [`clues`] finds which clues a puzzle needs to have one
//! solution.

pub(super) mod clues;
pub(super) mod constraints;

use crate::Random;

/// Guesses of a search at most.
const MAX_GUESSES: usize = 300;

/// Sets of values, one a variable; bit v stands for the value v.
pub(super) type Set = u64;

/// No solution is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contradiction;

/// The values from `low` to `high`, both included.
pub(super) fn values(low: u32, high: u32) -> Set {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The values of a set, ascending.
pub(super) fn members(mut set: Set) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let value = (set != 0).then(|| set.trailing_zeros());
        set &= set.wrapping_sub(1);
        value
    })
}

/// The values still possible, and which variables changed since that was last seen to.
#[derive(Debug, Clone)]
pub(super) struct Domains {
    sets: Vec<Set>,
    changed: Vec<usize>,
}

impl Domains {
    pub fn get(&self, variable: usize) -> Set {
        self.sets[variable]
    }

    /// The value, where one alone is left.
    pub fn value(&self, variable: usize) -> Option<u32> {
        let set = self.sets[variable];
        set.is_power_of_two().then(|| set.trailing_zeros())
    }

    /// The smallest and largest value.
    pub fn bounds(&self, variable: usize) -> (u32, u32) {
        let set = self.sets[variable];
        (set.trailing_zeros(), 63 - set.leading_zeros())
    }

    /// Keeps only values of `allowed`.
    pub fn keep(&mut self, variable: usize, allowed: Set) -> Result<(), Contradiction> {
        let set = self.sets[variable] & allowed;
        if set == 0 {
            return Err(Contradiction);
        }
        if set != self.sets[variable] {
            self.sets[variable] = set;
            self.changed.push(variable);
        }
        Ok(())
    }

    fn is_solved(&self) -> bool {
        self.sets.iter().all(|set| set.is_power_of_two())
    }

    fn solution(&self) -> Vec<u32> {
        self.sets.iter().map(|set| set.trailing_zeros()).collect()
    }

    /// The open variable with the fewest values.
    fn narrowest(&self) -> Option<usize> {
        let open = (0..self.sets.len()).filter(|variable| !self.sets[*variable].is_power_of_two());
        open.min_by_key(|variable| self.sets[*variable].count_ones())
    }
}

/// A rule over some variables.
pub(super) trait Constraint {
    /// The variables it is about.
    fn variables(&self) -> &[usize];

    /// Rules out values that no solution has. With one value left for each variable it must see whether it holds.
    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction>;
}

/// What a search found.
pub(super) struct Found {
    pub solutions: Vec<Vec<u32>>,
    /// The search saw every possibility, or as many solutions as were asked for; otherwise it ran out of guesses.
    pub complete: bool,
}

impl Found {
    /// There is one solution, and certainly no other.
    pub fn is_unique(&self) -> bool {
        self.complete && self.solutions.len() == 1
    }
}

/// A step of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// No other value is left.
    Only { variable: usize, value: u32 },
    /// One of several values, tried.
    Guess { variable: usize, value: u32 },
    /// The last guess that still stood is wrong.
    Wrong { variable: usize, value: u32 },
}

/// Variables with their constraints.
pub(super) struct Problem {
    sets: Vec<Set>,
    constraints: Vec<Box<dyn Constraint>>,
    /// The constraints of each variable.
    watchers: Vec<Vec<usize>>,
}

impl Problem {
    pub fn new(variables: usize, domain: Set) -> Self {
        Self { sets: vec![domain; variables], constraints: Vec::new(), watchers: vec![Vec::new(); variables] }
    }

    pub fn add(&mut self, constraint: impl Constraint + 'static) {
        for variable in constraint.variables() {
            self.watchers[*variable].push(self.constraints.len());
        }
        self.constraints.push(Box::new(constraint));
    }

    /// The values a variable may have at the start.
    pub fn domain(&self, variable: usize) -> Set {
        self.sets[variable]
    }

    /// Sets the values a variable may have at the start.
    pub fn set_domain(&mut self, variable: usize, domain: Set) {
        self.sets[variable] = domain;
    }

    /// The domains with all that follows without a guess.
    pub fn propagated(&self) -> Result<Domains, Contradiction> {
        if self.sets.contains(&0) {
            return Err(Contradiction);
        }
        let mut domains = Domains { sets: self.sets.clone(), changed: Vec::new() };
        self.propagate(&mut domains, (0..self.constraints.len()).collect(), &mut |_, _| {})?;
        Ok(domains)
    }

    /// Solutions, up to a number.
    pub fn solutions(&self, limit: usize) -> Found {
        let mut search =
            Search { problem: self, limit, guesses: 0, random: None, steps: None, found: Vec::new() };
        let complete = search.run();
        Found { solutions: search.found, complete }
    }

    /// A solution, of no particular distribution; `None` if the search ran out of guesses or there is none.
    pub fn random_solution(&self, random: &mut Random) -> Option<Vec<u32>> {
        let mut search = Search {
            problem: self,
            limit: 1,
            guesses: 0,
            random: Some(random),
            steps: None,
            found: Vec::new(),
        };
        search.run();
        search.found.pop()
    }

    /// How the search comes to the first solution.
    pub fn steps(&self) -> Option<Vec<Step>> {
        let mut search = Search {
            problem: self,
            limit: 1,
            guesses: 0,
            random: None,
            steps: Some(Vec::new()),
            found: Vec::new(),
        };
        search.run();
        search.steps.filter(|_| !search.found.is_empty())
    }

    /// Runs the queued constraints, and those of every variable that changes, until nothing changes any more.
    fn propagate(
        &self,
        domains: &mut Domains,
        mut queue: Vec<usize>,
        decided: &mut dyn FnMut(usize, u32),
    ) -> Result<(), Contradiction> {
        let mut queued = vec![false; self.constraints.len()];
        queue.iter().for_each(|constraint| queued[*constraint] = true);
        let mut next = 0;
        loop {
            let changed = std::mem::take(&mut domains.changed);
            for (place, variable) in changed.iter().copied().enumerate() {
                if changed[..place].contains(&variable) {
                    continue;
                }
                if let Some(value) = domains.value(variable) {
                    decided(variable, value);
                }
                for constraint in &self.watchers[variable] {
                    if !std::mem::replace(&mut queued[*constraint], true) {
                        queue.push(*constraint);
                    }
                }
            }
            let Some(constraint) = queue.get(next).copied() else {
                return Ok(());
            };
            next += 1;
            queued[constraint] = false;
            self.constraints[constraint].propagate(domains)?;
        }
    }
}

struct Search<'a> {
    problem: &'a Problem,
    limit: usize,
    guesses: usize,
    /// Values are tried in random order, otherwise ascending.
    random: Option<&'a mut Random>,
    steps: Option<Vec<Step>>,
    found: Vec<Vec<u32>>,
}

impl Search<'_> {
    /// False if it ran out of guesses.
    fn run(&mut self) -> bool {
        if self.problem.sets.contains(&0) {
            return true;
        }
        let mut domains = Domains { sets: self.problem.sets.clone(), changed: Vec::new() };
        let all = (0..self.problem.constraints.len()).collect();
        if self.propagate(&mut domains, all).is_err() {
            return true;
        }
        self.descend(&domains)
    }

    fn propagate(&mut self, domains: &mut Domains, queue: Vec<usize>) -> Result<(), Contradiction> {
        let steps = &mut self.steps;
        self.problem.propagate(domains, queue, &mut |variable, value| {
            if let Some(steps) = steps {
                steps.push(Step::Only { variable, value });
            }
        })
    }

    fn note(&mut self, step: Step) {
        if let Some(steps) = &mut self.steps {
            steps.push(step);
        }
    }

    fn descend(&mut self, domains: &Domains) -> bool {
        let Some(variable) = domains.narrowest() else {
            debug_assert!(domains.is_solved());
            self.found.push(domains.solution());
            return true;
        };
        let mut order: Vec<u32> = members(domains.get(variable)).collect();
        if let Some(random) = &mut self.random {
            random.shuffle(&mut order);
        }
        for value in order {
            self.guesses += 1;
            if self.guesses > MAX_GUESSES {
                return false;
            }
            self.note(Step::Guess { variable, value });
            let mut tried = domains.clone();
            tried.sets[variable] = 1 << value;
            if self.propagate(&mut tried, self.problem.watchers[variable].clone()).is_ok()
                && !self.descend(&tried)
            {
                return false;
            }
            if self.found.len() >= self.limit {
                return true;
            }
            self.note(Step::Wrong { variable, value });
        }
        true
    }
}
