//! Times of day: when do events start that are told one after another, in which order are they, and when are
//! several people free together?

use super::{Drawn, Problem, answer, words};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<TimeSequence> = Drawn::NEW;

const EVENTS: [&str; 16] = [
    "concert",
    "lecture",
    "dinner",
    "meeting",
    "walk",
    "film",
    "lunch",
    "race",
    "exam",
    "party",
    "parade",
    "auction",
    "picnic",
    "rehearsal",
    "interview",
    "match",
];

/// A problem about times, which are minutes after midnight.
pub(crate) enum TimeSequence {
    Events(Events),
    Calendar(Calendar),
}

/// Events, each told by its distance to one before.
pub(crate) struct Events {
    names: Vec<&'static str>,
    first: i64,
    /// For event `i + 1`: the event it is told by, and how many minutes later it starts.
    told: Vec<(usize, i64)>,
    /// The order of the sentences.
    order: Vec<usize>,
    /// The event whose time is asked for; all events in their order if none is.
    asked: Option<usize>,
}

/// People's appointments between two times of a day.
pub(crate) struct Calendar {
    day: (i64, i64),
    names: Vec<&'static str>,
    /// Start and end of each appointment, ascending, without overlap.
    appointments: Vec<Vec<(i64, i64)>>,
    needed: i64,
}

fn clock(minutes: i64) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

fn duration(minutes: i64) -> String {
    let unit = |count: i64, unit: &str| format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    match (minutes / 60, minutes % 60) {
        (0, minutes) => unit(minutes, "minute"),
        (hours, 0) => unit(hours, "hour"),
        (hours, minutes) => format!("{} and {}", unit(hours, "hour"), unit(minutes, "minute")),
    }
}

impl Events {
    /// Starts that are all different and on one day.
    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        let count = 2 + level.div_ceil(2);
        let names = words::different(random, &EVENTS, count);
        let grain = [30, 15, 5, 5, 1][level.min(5) - 1];
        loop {
            let first = grain * random.range(6 * 60 / grain, 18 * 60 / grain);
            let told = (1..count).map(|event| {
                let base = if difficulty >= 3 { random.index(event) } else { event - 1 };
                let distance = grain * random.range(1, (30 + 15 * i64::from(difficulty)) / grain);
                (base, if difficulty >= 2 && random.chance(1, 3) { -distance } else { distance })
            });
            let told = told.collect();
            let mut order: Vec<usize> = (0..count).collect();
            if difficulty >= 4 {
                random.shuffle(&mut order);
            }
            let asked = (difficulty < 3 || random.chance(1, 2)).then_some(count - 1);
            let events = Self { names: names.clone(), first, told, order, asked };
            let mut starts = events.starts();
            starts.sort_unstable();
            let same_day = starts.iter().all(|start| (0..24 * 60).contains(start));
            if same_day && starts.windows(2).all(|pair| pair[0] != pair[1]) {
                return events;
            }
        }
    }

    fn starts(&self) -> Vec<i64> {
        let mut starts = vec![self.first];
        for (base, distance) in &self.told {
            starts.push(starts[*base] + distance);
        }
        starts
    }

    fn sorted(&self) -> Vec<usize> {
        let starts = self.starts();
        let mut sorted: Vec<usize> = (0..starts.len()).collect();
        sorted.sort_by_key(|event| starts[*event]);
        sorted
    }

    fn listed(&self, events: &[usize]) -> String {
        events.iter().map(|event| self.names[*event]).collect::<Vec<_>>().join(", ")
    }

    fn prompt(&self) -> String {
        let sentence = |event: &usize| match event.checked_sub(1).map(|told| self.told[told]) {
            None => format!("The {} starts at {}.", self.names[0], clock(self.first)),
            Some((base, distance)) => format!(
                "The {} starts {} {} the {}.",
                self.names[*event],
                duration(distance.abs()),
                if distance < 0 { "before" } else { "after" },
                self.names[base]
            ),
        };
        let story = self.order.iter().map(sentence).collect::<Vec<_>>().join("\n");
        match self.asked {
            Some(event) => format!(
                "{story}\nWhen does the {} start? End with a line `Answer: HH:MM`.",
                self.names[event]
            ),
            None => format!(
                "{story}\nIn which order do these start? End with a line `Answer: ...`, where ... are the events \
                 from the first to the last with commas between."
            ),
        }
    }

    fn answer(&self) -> String {
        match self.asked {
            Some(event) => clock(self.starts()[event]),
            None => self.listed(&self.sorted()),
        }
    }

    fn thinking(&self) -> String {
        let starts = self.starts();
        let line = |event: usize| match event.checked_sub(1).map(|told| self.told[told]) {
            None => format!("{} {}", self.names[0], clock(self.first)),
            Some((base, distance)) => {
                let sign = if distance < 0 { '-' } else { '+' };
                let distance = clock(distance.abs());
                format!(
                    "{} {} {sign} {distance} = {}",
                    self.names[event],
                    clock(starts[base]),
                    clock(starts[event])
                )
            }
        };
        let mut lines: Vec<String> = (0..self.names.len()).map(line).collect();
        if self.asked.is_none() {
            let sorted = self
                .sorted()
                .into_iter()
                .map(|event| format!("{} {}", clock(starts[event]), self.names[event]));
            lines.push(sorted.collect::<Vec<_>>().join(", "));
        }
        lines.join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        match self.asked {
            Some(event) => wrong_times(self.starts()[event]),
            None => {
                let mut wrong = self.sorted();
                wrong.swap(0, 1);
                vec![self.listed(&wrong), self.listed(&self.sorted()[1..])]
            }
        }
    }
}

impl Calendar {
    /// A calendar in which there is a time for the meeting.
    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        let names = words::names(random, 1 + level / 3);
        let grain = if difficulty < 5 { 30 } else { 15 };
        let day = (60 * random.range(7, 10), 60 * random.range(16, 19));
        loop {
            let appointments: Vec<Vec<(i64, i64)>> =
                names.iter().map(|_| draw_appointments(random, day, grain, 1 + level.div_ceil(2))).collect();
            let needed = grain * random.range(1, 6);
            let calendar = Self { day, names: names.clone(), appointments, needed };
            let gaps = calendar.gaps();
            // Some gap before the right one is too short, but at the lowest difficulty.
            let fits = gaps.iter().position(|(start, end)| end - start >= needed);
            if fits.is_some_and(|place| place > 0 || difficulty == 1 || random.chance(1, 10)) {
                return calendar;
            }
        }
    }

    /// All appointments, merged and ascending.
    fn busy(&self) -> Vec<(i64, i64)> {
        let mut all = self.appointments.concat();
        all.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }

    /// The times nobody is busy, ascending.
    fn gaps(&self) -> Vec<(i64, i64)> {
        let busy = self.busy();
        let starts = [self.day.0].into_iter().chain(busy.iter().map(|(_, end)| *end));
        let ends = busy.iter().map(|(start, _)| *start).chain([self.day.1]);
        starts.zip(ends).filter(|(start, end)| start < end).collect()
    }

    fn start(&self) -> i64 {
        let fits = |(start, end): &(i64, i64)| end - start >= self.needed;
        self.gaps().into_iter().find(fits).map_or(self.day.0, |gap| gap.0)
    }

    fn prompt(&self) -> String {
        let person = |(name, appointments): (&&str, &Vec<(i64, i64)>)| {
            let spans: Vec<String> = appointments.iter().map(span).collect();
            format!("{name} is busy {}.\n", words::enumeration(&spans, "and"))
        };
        let people: String = self.names.iter().zip(&self.appointments).map(person).collect();
        let who = match &self.names[..] {
            [one] => format!("{one} free"),
            [_, _] => "both free".to_owned(),
            _ => "all free".to_owned(),
        };
        let subject = if self.names.len() == 1 { "is" } else { "are" };
        format!(
            "{people}Between {} and {}, from which time on {subject} {who} for {}? End with a line `Answer: HH:MM`, \
             the earliest such time.",
            clock(self.day.0),
            clock(self.day.1),
            duration(self.needed)
        )
    }

    fn thinking(&self) -> String {
        let busy: Vec<String> = self.busy().iter().map(span).collect();
        let mut lines = vec![format!("busy {}", busy.join(", "))];
        for gap in self.gaps() {
            let length = gap.1 - gap.0;
            let fits = length >= self.needed;
            lines.push(format!("free {} {}: {}", span(&gap), clock(length), if fits { "yes" } else { "no" }));
            if fits {
                break;
            }
        }
        lines.join("\n")
    }
}

/// Up to `count` appointments within the day that neither touch nor overlap.
fn draw_appointments(random: &mut Random, day: (i64, i64), grain: i64, count: usize) -> Vec<(i64, i64)> {
    let mut bounds: Vec<i64> = random
        .sample(((day.1 - day.0) / grain + 1) as usize, 2 * count)
        .into_iter()
        .map(|place| day.0 + grain * place as i64)
        .collect();
    bounds.sort_unstable();
    bounds.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

fn span(span: &(i64, i64)) -> String {
    format!("{}-{}", clock(span.0), clock(span.1))
}

fn wrong_times(right: i64) -> Vec<String> {
    let day = 24 * 60;
    [1, 60, day - 1].iter().map(|shift| clock((right + shift) % day)).chain(["25:00".to_owned()]).collect()
}

/// Reads `9:05`, `09:05` or `09:05:00`.
fn read_clock(text: &str) -> Option<i64> {
    let mut parts = text.trim().trim_end_matches('.').split(':');
    let mut part = |limit: i64| {
        let part = parts.next()?;
        let digits = (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<i64>().ok().filter(|value| digits && *value < limit)
    };
    let (hours, minutes) = (part(24)?, part(60)?);
    matches!(parts.next(), None | Some("00")).then_some(())?;
    parts.next().is_none().then_some(hours * 60 + minutes)
}

impl Problem for TimeSequence {
    const NAME: &'static str = "time_sequence";
    const SUMMARY: &'static str =
        "times and order of events told by each other, and times when people are free";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        match random.chance(1, 2) {
            true => Self::Events(Events::draw(random, difficulty)),
            false => Self::Calendar(Calendar::draw(random, difficulty)),
        }
    }

    fn prompt(&self) -> String {
        match self {
            Self::Events(events) => events.prompt(),
            Self::Calendar(calendar) => calendar.prompt(),
        }
    }

    fn answer(&self) -> String {
        match self {
            Self::Events(events) => events.answer(),
            Self::Calendar(calendar) => clock(calendar.start()),
        }
    }

    fn thinking(&self) -> String {
        match self {
            Self::Events(events) => events.thinking(),
            Self::Calendar(calendar) => calendar.thinking(),
        }
    }

    fn wrong_answers(&self) -> Vec<String> {
        match self {
            Self::Events(events) => events.wrong_answers(),
            Self::Calendar(calendar) => wrong_times(calendar.start()),
        }
    }

    fn check(instance: &Instance, given: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        match (read_clock(expected), read_clock(given)) {
            (None, _) => answer::same_words(expected, given),
            (Some(expected), Some(given)) if expected == given => Ok(()),
            (Some(_), Some(given)) => Err(format!("it is not {}", clock(given))),
            (Some(_), None) => Err(format!("{} is no time", answer::quoted(given))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_or_without_a_leading_zero() {
        assert_eq!(read_clock("09:05"), Some(545));
        assert_eq!(read_clock("9:05."), Some(545));
        assert_eq!(read_clock("09:05:00"), Some(545));
        for wrong in ["24:00", "9", "9:60", "-1:00", "09:05:01", "009:05", "9:+5", "09:05:00:00", "", ":"] {
            assert_eq!(read_clock(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn gaps_lie_between_the_merged_appointments_of_all() {
        let calendar = Calendar {
            day: (540, 720),
            names: vec!["Ann", "Bob"],
            appointments: vec![vec![(540, 570), (600, 660)], vec![(630, 675)]],
            needed: 45,
        };
        assert_eq!(calendar.gaps(), [(570, 600), (675, 720)]);
        assert_eq!(
            calendar.thinking(),
            "busy 09:00-09:30, 10:00-11:15\nfree 09:30-10:00 00:30: no\nfree 11:15-12:00 00:45: yes"
        );
        assert_eq!(clock(calendar.start()), "11:15");
    }

    #[test]
    fn events_are_told_by_others_and_sorted_by_their_starts() {
        let events = Events {
            names: vec!["walk", "film", "race"],
            first: 600,
            told: vec![(0, 75), (1, -90)],
            order: vec![0, 1, 2],
            asked: None,
        };
        assert_eq!(
            events.thinking(),
            "walk 10:00\nfilm 10:00 + 01:15 = 11:15\nrace 11:15 - 01:30 = 09:45\n09:45 race, 10:00 walk, 11:15 film"
        );
        assert_eq!(events.answer(), "race, walk, film");
    }
}
