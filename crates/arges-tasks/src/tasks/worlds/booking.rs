//! The desk of a boat tour: bookings are made, moved and cancelled through tools, and the books have to be right at
//! the end (after TAU-bench, Yao et al. 2024).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Played, Scenario, call, text, tool, whole};
use crate::episode::World;
use crate::tasks::language::answer::quoted;
use crate::tasks::language::words::names;
use crate::{Random, Verdict};

pub(crate) static TASK: Played<Booking> = Played::NEW;

const DAYS: [&str; 5] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"];

/// Seats that someone has on a day, as a place in [`DAYS`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    guest: String,
    day: usize,
    seats: i64,
}

/// The books: free seats by day, and bookings by number.
#[derive(Clone, Debug, PartialEq)]
struct Books {
    free: [i64; 5],
    bookings: BTreeMap<i64, Entry>,
    next: i64,
}

impl Books {
    fn book(&mut self, guest: &str, day: usize, seats: i64) -> Result<i64, String> {
        if seats < 1 {
            return Err("a booking has at least one seat".to_owned());
        }
        self.take(day, seats)?;
        let number = self.next;
        self.next += 1;
        self.bookings.insert(number, Entry { guest: guest.to_owned(), day, seats });
        Ok(number)
    }

    fn take(&mut self, day: usize, seats: i64) -> Result<(), String> {
        let free = self.free[day];
        if seats > free {
            return Err(format!("only {free} seats are free on {}", DAYS[day]));
        }
        self.free[day] -= seats;
        Ok(())
    }

    fn change(&mut self, number: i64, day: Option<usize>) -> Result<(), String> {
        let missing = || format!("there is no booking {number}");
        let entry = self.bookings.get(&number).cloned().ok_or_else(missing)?;
        match day {
            Some(day) if day == entry.day => {
                return Err(format!("booking {number} is on {} already", DAYS[day]));
            }
            Some(day) => {
                self.take(day, entry.seats)?;
                self.bookings.insert(number, Entry { day, ..entry.clone() });
            }
            None => drop(self.bookings.remove(&number)),
        }
        self.free[entry.day] += entry.seats;
        Ok(())
    }

    /// Bookings without their numbers, in order: what is judged.
    fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.bookings.values().collect();
        entries.sort_unstable();
        entries
    }

    fn number_of(&self, guest: &str) -> i64 {
        self.bookings.iter().find(|(_, entry)| entry.guest == guest).map_or(0, |(number, _)| *number)
    }
}

#[derive(Clone, Debug)]
enum Wish {
    Cancel,
    Move(usize),
    Book {
        day: usize,
        seats: i64,
    },
    /// Cancelled where the day has too few seats.
    MoveOrCancel(usize),
    /// On the first day of the week with enough seats; there is one.
    BookFirst(i64),
}

/// Books, and what guests wish in order.
pub(crate) struct Booking {
    books: Books,
    wishes: Vec<(&'static str, Wish)>,
}

impl Booking {
    /// The calls for each wish, and the books afterwards.
    fn played(&self) -> (Vec<Vec<Value>>, Books) {
        let mut books = self.books.clone();
        let mut turns = Vec::new();
        for (guest, wish) in &self.wishes {
            let number = books.number_of(guest);
            let find = vec![call("find_bookings", json!({ "guest": guest }))];
            let ask = |day: usize| vec![call("free_seats", json!({ "day": DAYS[day] }))];
            let cancel = vec![call("cancel_booking", json!({ "number": number }))];
            let move_to =
                |day: usize| vec![call("move_booking", json!({ "number": number, "day": DAYS[day] }))];
            let book = |day: usize, seats: i64| {
                vec![call("book", json!({ "guest": guest, "day": DAYS[day], "seats": seats }))]
            };
            match *wish {
                Wish::Cancel => turns.extend([find, cancel]),
                Wish::Move(day) => turns.extend([find, move_to(day)]),
                Wish::MoveOrCancel(day) => {
                    let seats = books.bookings.get(&number).map_or(0, |entry| entry.seats);
                    let act = if books.free[day] >= seats { move_to(day) } else { cancel };
                    turns.extend([find, ask(day), act]);
                }
                Wish::Book { day, seats } => turns.push(book(day, seats)),
                Wish::BookFirst(seats) => {
                    let day = books.free.iter().position(|free| *free >= seats).unwrap_or(DAYS.len() - 1);
                    turns.extend((0..=day).map(ask));
                    turns.push(book(day, seats));
                }
            }
            for call in turns.last().into_iter().flatten() {
                let done = act(&mut books, call["name"].as_str().unwrap_or_default(), &call["arguments"]);
                debug_assert!(done.is_ok(), "{call}: {done:?}");
            }
        }
        (turns, books)
    }
}

impl Scenario for Booking {
    const NAME: &'static str = "booking";
    const SUMMARY: &'static str = "book, move and cancel seats of a boat tour with tools, as guests wish";
    const MAX_DIFFICULTY: u32 = 8;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let guests = names(random, 6);
        let mut books = Books { free: [0; 5], bookings: BTreeMap::new(), next: random.range(10, 70) };
        books.free = [0; 5].map(|_: i64| random.range(14, 20));
        for guest in &guests[..4] {
            let (day, seats) = (random.index(5), random.range(1, 4));
            books.free[day] -= seats;
            books.bookings.insert(books.next, Entry { guest: (*guest).to_owned(), day, seats });
            books.next += random.range(1, 9);
        }
        if difficulty >= 4 {
            // Some days are all but full.
            for day in 0..4 {
                books.free[day] = if random.chance(1, 2) { random.range(0, 1) } else { books.free[day] };
            }
        }
        let mut scenario = Self { books, wishes: Vec::new() };
        let (mut hosts, mut strangers) = (guests[..4].to_vec(), guests[4..].to_vec());
        for _ in 0..1 + (difficulty - 1) / 3 {
            let books = scenario.played().1;
            let kind = match difficulty {
                1..=3 => difficulty as usize - 1,
                _ => random.index(5),
            };
            let wish = match kind {
                2 | 4 if !strangers.is_empty() => {
                    let roomy: Vec<usize> = (0..5).filter(|day| books.free[*day] >= 2).collect();
                    let day = *random.choose(&roomy);
                    let seats = random.range(2, books.free[day].min(5));
                    let wish = if kind == 4 { Wish::BookFirst(seats) } else { Wish::Book { day, seats } };
                    (strangers.remove(0), wish)
                }
                _ => {
                    let guest = hosts.remove(random.index(hosts.len()));
                    let number = books.number_of(guest);
                    let entry = &books.bookings[&number];
                    let others: Vec<usize> = (0..5).filter(|day| *day != entry.day).collect();
                    let roomy: Vec<usize> =
                        others.iter().copied().filter(|day| books.free[*day] >= entry.seats).collect();
                    match kind {
                        1 if !roomy.is_empty() => (guest, Wish::Move(*random.choose(&roomy))),
                        3 => (guest, Wish::MoveOrCancel(*random.choose(&others))),
                        _ => (guest, Wish::Cancel),
                    }
                }
            };
            scenario.wishes.push(wish);
        }
        scenario
    }

    fn prompt(&self) -> String {
        let wish = |(guest, wish): &(&str, Wish)| match wish {
            Wish::Cancel => format!("- {guest} wants to cancel the booking.\n"),
            Wish::Move(day) => format!("- {guest} wants to move the booking to {}.\n", DAYS[*day]),
            Wish::Book { day, seats } => {
                format!("- {guest} wants a booking of {seats} seats on {}.\n", DAYS[*day])
            }
            Wish::MoveOrCancel(day) => format!(
                "- {guest} wants to move the booking to {}; if too few seats are free there, it is to be cancelled.\n",
                DAYS[*day]
            ),
            Wish::BookFirst(seats) => {
                format!(
                    "- {guest} wants a booking of {seats} seats on the first day from Monday on with room.\n"
                )
            }
        };
        format!(
            "You keep the books of a boat tour, from Monday to Friday, through the tools. Do what the guests want, in \
             this order, and change nothing else. When all is done, say so.\n{}",
            self.wishes.iter().map(wish).collect::<String>()
        )
    }

    fn tools(&self) -> Vec<Value> {
        let guest = ("guest", "string", "the guest's name");
        let number = ("number", "integer", "the booking's number");
        let (day, seats) = (("day", "string", "Monday to Friday"), ("seats", "integer", "how many"));
        let mut tools = vec![
            tool("find_bookings", "The bookings of a guest", &[guest]),
            tool("free_seats", "How many seats are free on a day", &[day]),
            tool("book", "Make a booking", &[guest, day, seats]),
            tool("move_booking", "Move a booking to another day", &[number, day]),
            tool("cancel_booking", "Cancel a booking", &[number]),
        ];
        for tool in &mut tools {
            if let Some(day) = tool["parameters"]["properties"].get_mut("day") {
                day["enum"] = json!(DAYS);
            }
        }
        tools
    }

    fn expected(&self) -> Value {
        let (_, books) = self.played();
        let entry = |entry: &Entry| json!([entry.guest, DAYS[entry.day], entry.seats]);
        books.entries().into_iter().map(entry).collect()
    }

    fn open(self) -> Box<dyn World> {
        let (turns, wanted) = self.played();
        Box::new(Desk { books: self.books, wanted, max_turns: 2 * turns.len() + 4 })
    }

    fn thinking(&self) -> String {
        let guests: Vec<&str> = self.wishes.iter().map(|(guest, _)| *guest).collect();
        format!("In order: {}.", guests.join(", "))
    }

    fn solution(&self) -> (Vec<Vec<Value>>, String) {
        (self.played().0, "All is done.".to_owned())
    }

    fn wrong(&self) -> Vec<(Vec<Vec<Value>>, String)> {
        let (turns, last) = self.solution();
        let mut one_less = turns.clone();
        one_less.pop();
        let stranger = call("book", json!({ "guest": "Nobody", "day": "Friday", "seats": 1 }));
        let kept = self
            .books
            .bookings
            .iter()
            .find(|(_, entry)| self.wishes.iter().all(|(guest, _)| *guest != entry.guest));
        let mut wrong = vec![(Vec::new(), last.clone()), (one_less, last.clone())];
        if self.played().1.free[4] > 0 {
            wrong.push(([turns.clone(), vec![vec![stranger]]].concat(), last.clone()));
        }
        if let Some((number, _)) = kept {
            let cancel = call("cancel_booking", json!({ "number": number }));
            wrong.push(([turns, vec![vec![cancel]]].concat(), last));
        }
        wrong
    }
}

struct Desk {
    books: Books,
    wanted: Books,
    max_turns: usize,
}

impl World for Desk {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
        act(&mut self.books, name, &Value::Object(arguments.clone()))
    }

    fn judge(&mut self, _answer: &str) -> Verdict {
        let (wanted, books) = (self.wanted.entries(), self.books.entries());
        let told = |entry: &Entry| {
            format!("{} has {} seats on {}", quoted(&entry.guest), entry.seats, DAYS[entry.day])
        };
        if let Some(entry) = books.iter().find(|entry| !wanted.contains(entry)) {
            return Verdict::wrong(format!("{}, which nobody wanted", told(entry)));
        }
        let missing = wanted.iter().find(|entry| !books.contains(entry)).map(|entry| told(entry));
        Verdict::from_check(match (books == wanted, missing) {
            (true, _) => Ok(()),
            (false, Some(missing)) => Err(format!("it should be that {missing}")),
            (false, None) => Err("a booking was made twice".to_owned()),
        })
    }

    fn max_turns(&self) -> usize {
        self.max_turns
    }
}

fn act(books: &mut Books, name: &str, arguments: &Value) -> Result<String, String> {
    let no_arguments = Map::new();
    let arguments = arguments.as_object().unwrap_or(&no_arguments);
    let day = || {
        let name = text(arguments, "day");
        DAYS.iter()
            .position(|day| *day == name)
            .ok_or_else(|| format!("{} is no day of a tour", quoted(name)))
    };
    match name {
        "find_bookings" => {
            let guest = text(arguments, "guest");
            let found = books.bookings.iter().filter(|(_, entry)| entry.guest == guest);
            let told = found.map(|(number, entry)| {
                format!("booking {number}: {}, {} seats", DAYS[entry.day], entry.seats)
            });
            let told: Vec<String> = told.collect();
            if told.is_empty() {
                Err(format!("{} has no booking", quoted(guest)))
            } else {
                Ok(told.join("\n"))
            }
        }
        "free_seats" => Ok(books.free[day()?].to_string()),
        "book" => {
            // Names are kept for the verdict's reason, no longer than such are.
            let guest: String = text(arguments, "guest").chars().take(100).collect();
            let number = books.book(&guest, day()?, whole(arguments, "seats")?)?;
            Ok(format!("booking {number} is made"))
        }
        "move_booking" => {
            let number = whole(arguments, "number")?;
            books.change(number, Some(day()?))?;
            Ok(format!("booking {number} is moved"))
        }
        "cancel_booking" => {
            let number = whole(arguments, "number")?;
            books.change(number, None)?;
            Ok(format!("booking {number} is cancelled"))
        }
        _ => Err("there is no such tool".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Episode, Step, Task as _};

    #[test]
    fn what_the_tools_refuse_changes_nothing() {
        let scenario = Played::<Booking>::draw(1, 8);
        let mut books = scenario.books.clone();
        for (name, arguments) in [
            ("book", json!({ "guest": "A", "day": "Monday", "seats": 0 })),
            ("book", json!({ "guest": "A", "day": "Monday", "seats": -5 })),
            ("book", json!({ "guest": "A", "day": "Monday", "seats": i64::MAX })),
            ("book", json!({ "guest": "A", "day": "Monday", "seats": u64::MAX })),
            ("book", json!({ "guest": "A", "day": "Sunday", "seats": 1 })),
            ("cancel_booking", json!({ "number": i64::MIN })),
            ("move_booking", json!({ "number": 1e300, "day": "Friday" })),
            ("find_bookings", json!({ "guest": "\u{0}" })),
        ] {
            act(&mut books, name, &arguments).unwrap_err();
        }
        assert_eq!(books, scenario.books);
    }

    #[test]
    fn seats_are_neither_lost_nor_made_and_results_tell_what_the_next_call_needs() {
        for seed in 0..100 {
            let instance = TASK.generate(seed, 1 + (seed % 8) as u32);
            let scenario = Played::<Booking>::scenario(&instance).unwrap();
            let seats = |books: &Books| {
                books.free.iter().sum::<i64>() + books.bookings.values().map(|entry| entry.seats).sum::<i64>()
            };
            assert_eq!(seats(&scenario.played().1), seats(&scenario.books));
            let mut episode = Episode::begin(&TASK, &instance);
            let mut told = String::new();
            for calls in scenario.solution().0 {
                if let Some(number) = calls[0]["arguments"].get("number") {
                    assert!(told.contains(&format!("booking {number}")), "{told}");
                }
                let turn = crate::tasks::language::tools::block(&calls);
                let Step::Results(results) = episode.step(&turn) else { panic!("an early end") };
                assert!(!results[0].failed, "{results:?}");
                told.push_str(&results[0].content);
            }
        }
    }
}
