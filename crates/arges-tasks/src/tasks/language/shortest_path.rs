//! Shortest ways through a graph. The trace is Dijkstra's algorithm: each line settles the nearest place and lists
//! the places to go on from, the nearest first, each with its distance and the place before it.

use super::{Drawn, Problem, answer};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<ShortestPath> = Drawn::NEW;

/// A graph of places named by letters, and a way to find from the first place to the last.
pub(crate) struct ShortestPath {
    /// Letters of the places.
    names: Vec<char>,
    roads: Vec<Road>,
    directed: bool,
    weighted: bool,
    start: usize,
    goal: usize,
}

#[derive(Clone, Copy)]
struct Road {
    from: usize,
    to: usize,
    length: u64,
}

/// A place that was reached: how far it is, and from where it was reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reached {
    distance: u64,
    place: usize,
    before: Option<usize>,
}

impl ShortestPath {
    /// The settled places in order, up to the goal, and after each the places to go on from.
    fn dijkstra(&self) -> Vec<(Reached, Vec<Reached>)> {
        let mut open = vec![Reached { distance: 0, place: self.start, before: None }];
        let mut settled: Vec<(Reached, Vec<Reached>)> = Vec::new();
        while !open.is_empty() {
            let nearest = open.remove(0);
            let done =
                |place| place == nearest.place || settled.iter().any(|(settled, _)| settled.place == place);
            if nearest.place != self.goal {
                for (to, length) in self.neighbours(nearest.place).filter(|(to, _)| !done(*to)) {
                    let reached = Reached {
                        distance: nearest.distance + length,
                        place: to,
                        before: Some(nearest.place),
                    };
                    match open.iter_mut().find(|other| other.place == to) {
                        Some(other) if other.distance <= reached.distance => {}
                        Some(other) => *other = reached,
                        None => open.push(reached),
                    }
                }
                open.sort_unstable();
            }
            settled.push((nearest, open.clone()));
            if nearest.place == self.goal {
                break;
            }
        }
        settled
    }

    fn neighbours(&self, place: usize) -> impl Iterator<Item = (usize, u64)> {
        self.roads.iter().filter_map(move |road| match *road {
            Road { from, to, length } if from == place => Some((to, length)),
            Road { from, to, length } if to == place && !self.directed => Some((from, length)),
            _ => None,
        })
    }

    /// A shortest way; `None` if there is none.
    fn path(&self) -> Option<Vec<usize>> {
        let settled = self.dijkstra();
        let mut path = vec![self.goal];
        while let Some(place) = path.last().filter(|place| **place != self.start) {
            let (reached, _) = settled.iter().find(|(reached, _)| reached.place == *place)?;
            path.push(reached.before?);
        }
        path.reverse();
        Some(path)
    }

    fn length_of(&self, path: &[usize]) -> Option<u64> {
        path.windows(2)
            .map(|pair| self.neighbours(pair[0]).find(|(to, _)| *to == pair[1]).map(|(_, length)| length))
            .sum()
    }

    fn spelled(&self, path: &[usize]) -> String {
        path.iter().map(|place| self.names[*place].to_string()).collect::<Vec<_>>().join(" ")
    }

    fn road_text(&self, road: &Road) -> String {
        let sign = if self.directed { "->" } else { "-" };
        let length = if self.weighted { format!(" {}", road.length) } else { String::new() };
        format!("{} {sign} {}{length}", self.names[road.from], self.names[road.to])
    }
}

impl Problem for ShortestPath {
    const NAME: &'static str = "shortest_path";
    const SUMMARY: &'static str = "find a shortest way through a graph, later with lengths and one-way roads";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let count = 3 + 2 * difficulty as usize;
        let (directed, weighted) = (difficulty >= 7, difficulty >= 4);
        let mut letters: Vec<char> = ('A'..='Z').collect();
        random.shuffle(&mut letters);
        letters.truncate(count);
        loop {
            let mut roads: Vec<Road> = Vec::new();
            for _ in 0..count * if directed { 5 } else { 3 } / 2 {
                let ends = random.sample(count, 2);
                let known = |road: &Road| {
                    [road.from, road.to] == ends[..] || (!directed && [road.to, road.from] == ends[..])
                };
                if !roads.iter().any(known) {
                    let length = if weighted { random.range(1, 9) as u64 } else { 1 };
                    roads.push(Road { from: ends[0], to: ends[1], length });
                }
            }
            let mut problem =
                Self { names: letters.clone(), roads, directed, weighted, start: 0, goal: count - 1 };
            problem.goal = usize::MAX;
            // Neighbours of the start would be no way to find.
            let far = |(reached, _): &(Reached, Vec<Reached>)| {
                (difficulty == 1 || reached.before != Some(0)).then_some(reached.place)
            };
            let far: Vec<usize> = problem.dijkstra().iter().skip(1).filter_map(far).collect();
            if far.len() > 1 + difficulty as usize / 2 {
                problem.goal = *random.choose(&far);
                return problem;
            }
        }
    }

    fn prompt(&self) -> String {
        let roads = self.roads.iter().map(|road| self.road_text(road)).collect::<Vec<_>>().join("\n");
        let kind = match (self.directed, self.weighted) {
            (false, false) => "Roads between places",
            (false, true) => "Roads between places, with their lengths",
            (true, _) => "One-way roads between places, with their lengths",
        };
        let what = if self.weighted { "shortest way" } else { "way with the fewest roads" };
        format!(
            "{kind}:\n{roads}\nFind a {what} from {} to {}. End with a line `Answer: ...`, where ... are the places \
             on the way with spaces between, both ends included.",
            self.names[self.start], self.names[self.goal]
        )
    }

    fn answer(&self) -> String {
        self.path().map(|path| self.spelled(&path)).unwrap_or_default()
    }

    fn thinking(&self) -> String {
        let entry = |reached: &Reached| {
            let before = reached.before.map_or('-', |before| self.names[before]);
            format!("{}{}{before}", self.names[reached.place], reached.distance)
        };
        let line = |(reached, open): &(Reached, Vec<Reached>)| {
            let open: Vec<String> = open.iter().map(entry).collect();
            match reached.place == self.goal {
                true => entry(reached),
                false => format!("{} : {}", entry(reached), open.join(" ")),
            }
        };
        let mut lines: Vec<String> = self.dijkstra().iter().map(line).collect();
        let mut back = self.path().unwrap_or_default();
        back.reverse();
        lines.push(format!("back: {}", self.spelled(&back)));
        lines.join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let path = self.path().unwrap_or_default();
        let mut wrong = vec![path[1..].to_vec(), path[..path.len() - 1].to_vec()];
        wrong.push(path.iter().rev().copied().collect());
        // To the goal and back over the last road.
        wrong.push([&path[..], &path[path.len() - 2..]].concat());
        let straight = [self.start, self.goal];
        let mut wrong: Vec<String> = wrong.iter().map(|path| self.spelled(path)).collect();
        if self.length_of(&straight).is_none() {
            wrong.push(self.spelled(&straight));
        }
        wrong
    }

    fn data(&self) -> serde_json::Value {
        let roads = self.roads.iter().map(|road| (self.names[road.from], self.names[road.to], road.length));
        serde_json::json!({ "roads": roads.collect::<Vec<_>>(), "directed": self.directed })
    }

    fn check(instance: &Instance, given: &str) -> Result<(), String> {
        let malformed = |error: serde_json::Error| format!("malformed instance: {error}");
        let graph: Graph = serde::Deserialize::deserialize(&instance.data).map_err(malformed)?;
        let expected = instance.answer.as_str().and_then(read_places).unwrap_or_default();
        let shortest = graph.length(&expected).ok_or("malformed instance: its answer is no way")?;
        let given_places =
            read_places(given).ok_or_else(|| format!("{} is no way", answer::quoted(given)))?;
        let ends = |places: &[char]| (places.first().copied(), places.last().copied());
        if ends(&given_places) != ends(&expected) {
            return Err("the way does not go from the start to the goal".to_owned());
        }
        match graph.length(&given_places) {
            None => Err("the way takes a road that is not there".to_owned()),
            Some(length) if length > shortest => Err(format!("the way has length {length}, not {shortest}")),
            Some(_) => Ok(()),
        }
    }
}

/// The graph as an instance keeps it.
#[derive(serde::Deserialize)]
struct Graph {
    roads: Vec<(char, char, u64)>,
    directed: bool,
}

impl Graph {
    fn length(&self, places: &[char]) -> Option<u64> {
        let road = |from: char, to: char| {
            let goes = |road: &&(char, char, u64)| {
                (road.0, road.1) == (from, to) || (!self.directed && (road.1, road.0) == (from, to))
            };
            self.roads.iter().find(goes).map(|road| road.2)
        };
        places.windows(2).try_fold(0_u64, |sum, pair| sum.checked_add(road(pair[0], pair[1])?))
    }
}

/// Letters with spaces, commas, hyphens or arrows between; no more than there are letters.
fn read_places(text: &str) -> Option<Vec<char>> {
    let spaced = text.len() <= 400;
    let text = if spaced { text.replace("->", " ").replace('-', " ") } else { return None };
    let place = |word: &str| {
        let mut letters = word.chars();
        letters.next().filter(|letter| letter.is_ascii_uppercase() && letters.next().is_none())
    };
    answer::words(&text).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    fn road(from: usize, to: usize, length: u64) -> Road {
        Road { from, to, length }
    }

    #[test]
    fn every_shortest_way_is_right_and_longer_ones_are_not() {
        let problem = ShortestPath {
            names: vec!['A', 'B', 'C', 'D'],
            roads: vec![road(0, 1, 1), road(1, 3, 3), road(2, 0, 2), road(2, 3, 2), road(0, 3, 5)],
            directed: false,
            weighted: true,
            start: 0,
            goal: 3,
        };
        let mut instance = TASK.generate(0, 1);
        (instance.answer, instance.data) = (problem.expected(), problem.data());
        let check = |answer: &str| ShortestPath::check(&instance, answer);
        assert_eq!(check("A B D"), Ok(()));
        assert_eq!(check("A -> C -> D"), Ok(()));
        assert_eq!(check("A-D").unwrap_err(), "the way has length 5, not 4");
        assert_eq!(check("A B C D").unwrap_err(), "the way takes a road that is not there");
        assert_eq!(check("A B").unwrap_err(), "the way does not go from the start to the goal");
        assert_eq!(problem.thinking(), "A0- : B1A C2A D5A\nB1A : C2A D4B\nC2A : D4B\nD4B\nback: D B A");
    }

    #[test]
    fn one_way_roads_go_one_way() {
        let graph = Graph { roads: vec![('A', 'B', 1)], directed: true };
        assert_eq!(graph.length(&['A', 'B']), Some(1));
        assert_eq!(graph.length(&['B', 'A']), None);
    }
}
