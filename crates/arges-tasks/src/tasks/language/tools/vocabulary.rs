//! Names, descriptions and values of made-up parameters. "The {description} is ..." is a sentence.

use super::parameter::Kind;

/// What a string holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Person,
    Place,
    Words,
    Date,
    Time,
    Code,
    Email,
    Path,
}

/// Names and descriptions of strings, by what they hold.
pub(super) const TEXTS: [(Text, &[(&str, &str)]); 8] = [
    (
        Text::Person,
        &[
            ("customer", "person who pays"),
            ("owner", "person it belongs to"),
            ("guest", "invited person"),
            ("manager", "person in charge"),
            ("author", "person who wrote it"),
            ("recipient", "person who gets it"),
            ("driver", "person at the wheel"),
            ("contact", "person to ask"),
        ],
    ),
    (
        Text::Place,
        &[
            ("city", "town it is in"),
            ("destination", "place to arrive at"),
            ("origin", "place to leave from"),
            ("venue", "place where it happens"),
            ("region", "part of the country"),
            ("warehouse", "place where goods are kept"),
        ],
    ),
    (
        Text::Words,
        &[
            ("title", "heading"),
            ("message", "text to pass on"),
            ("note", "remark"),
            ("topic", "subject matter"),
            ("reason", "cause"),
            ("motto", "guiding phrase"),
            ("label", "text on the tag"),
            ("keyword", "search phrase"),
            ("nickname", "short name"),
            ("theme", "overall idea"),
        ],
    ),
    (
        Text::Date,
        &[
            ("date", "day"),
            ("deadline", "last possible day"),
            ("start_date", "first day"),
            ("end_date", "final day"),
            ("birthday", "day of birth"),
            ("expiry", "day it runs out"),
        ],
    ),
    (
        Text::Time,
        &[
            ("time", "time of day"),
            ("start_time", "beginning"),
            ("end_time", "finish"),
            ("alarm_time", "wake-up time"),
        ],
    ),
    (
        Text::Code,
        &[
            ("order_id", "order code"),
            ("reference", "reference code"),
            ("serial_number", "code of the device"),
            ("voucher_code", "code of the voucher"),
            ("room_code", "code of the room"),
            ("batch", "production code"),
        ],
    ),
    (
        Text::Email,
        &[
            ("email", "mail address"),
            ("reply_to", "address for answers"),
            ("copy_to", "address for the copy"),
        ],
    ),
    (
        Text::Path,
        &[
            ("file", "file to use"),
            ("folder", "directory to use"),
            ("output_path", "place to write to"),
            ("template", "pattern file"),
        ],
    ),
];

/// Names and descriptions of integers, and their largest values.
pub(super) const INTEGERS: [(&str, &str, i64); 18] = [
    ("quantity", "number of pieces", 99),
    ("seats", "number of seats", 12),
    ("guests", "number of people", 40),
    ("copies", "number of prints", 200),
    ("pages", "number of sheets", 900),
    ("floor", "storey", 30),
    ("priority", "importance", 10),
    ("days", "number of days", 60),
    ("minutes", "length in minutes", 240),
    ("rooms", "number of rooms", 9),
    ("year", "calendar year", 2100),
    ("retries", "number of attempts", 8),
    ("limit", "most results", 500),
    ("level", "stage", 20),
    ("volume", "loudness", 100),
    ("interval", "minutes between runs", 90),
    ("points", "score to give", 1000),
    ("workers", "number of helpers", 16),
];

/// Names and descriptions of numbers, and their largest values.
pub(super) const NUMBERS: [(&str, &str, i64); 14] = [
    ("price", "cost", 900),
    ("weight", "mass in kilograms", 80),
    ("temperature", "heat in degrees", 40),
    ("width", "size from left to right", 300),
    ("height", "size from bottom to top", 250),
    ("depth", "size from front to back", 200),
    ("discount", "reduction in percent", 60),
    ("budget", "money to spend", 5000),
    ("rating", "score out of five", 5),
    ("speed", "kilometres an hour", 130),
    ("distance", "way in kilometres", 1200),
    ("tip", "extra money", 50),
    ("ratio", "relation of the two", 3),
    ("tolerance", "accepted deviation", 2),
];

/// Adjectives that are the names of booleans.
pub(super) const BOOLEANS: [&str; 20] = [
    "urgent",
    "express",
    "insured",
    "public",
    "recurring",
    "refundable",
    "encrypted",
    "silent",
    "heated",
    "anonymous",
    "verified",
    "washable",
    "portable",
    "wireless",
    "framed",
    "vegetarian",
    "fragile",
    "editable",
    "hidden",
    "waterproof",
];

/// Names, descriptions and values of enums.
pub(super) const ENUMS: [(&str, &str, &[&str]); 14] = [
    ("color", "paint", &["red", "blue", "green", "black", "white", "yellow", "purple"]),
    ("size", "extent", &["tiny", "small", "medium", "large", "huge"]),
    ("format", "file type", &["pdf", "csv", "html", "json", "xml", "txt"]),
    ("language", "tongue", &["english", "german", "french", "spanish", "chinese", "arabic"]),
    ("status", "state", &["open", "pending", "done", "blocked", "archived"]),
    ("payment", "way to pay", &["cash", "card", "invoice", "transfer"]),
    ("frequency", "rhythm", &["hourly", "daily", "weekly", "monthly", "yearly"]),
    ("season", "part of the year", &["spring", "summer", "autumn", "winter"]),
    ("material", "stuff it is made of", &["wood", "steel", "glass", "paper", "wool", "stone"]),
    ("meal", "food of the day", &["breakfast", "lunch", "dinner", "snack"]),
    ("direction", "way to go", &["north", "south", "east", "west"]),
    ("category", "class", &["music", "sport", "travel", "science", "art", "food"]),
    ("unit", "measure", &["gram", "kilogram", "meter", "mile", "liter"]),
    ("shape", "form", &["round", "square", "oval", "flat"]),
];

/// Names and descriptions of lists, and what they hold.
pub(super) const LISTS: [(&str, &str, Kind); 9] = [
    ("tags", "list of marks", Kind::Text(Text::Words)),
    ("participants", "list of people", Kind::Text(Text::Person)),
    ("stops", "list of places on the way", Kind::Text(Text::Place)),
    ("dates", "list of days", Kind::Text(Text::Date)),
    ("codes", "list of codes", Kind::Text(Text::Code)),
    ("page_numbers", "list of pages", Kind::Integer { most: 400 }),
    ("scores", "list of marks out of ten", Kind::Integer { most: 10 }),
    ("prices", "list of costs", Kind::Number { most: 200 }),
    ("attachments", "list of files", Kind::Text(Text::Path)),
];

/// Names and descriptions of objects.
pub(super) const OBJECTS: [(&str, &str); 10] = [
    ("options", "set of options"),
    ("details", "set of details"),
    ("settings", "set of settings"),
    ("delivery", "delivery data"),
    ("billing", "billing data"),
    ("preferences", "set of wishes"),
    ("source", "data of the source"),
    ("target", "data of the target"),
    ("filter", "set of conditions"),
    ("metadata", "additional data"),
];

/// What may stand before a name, and before its description; the first is nothing.
pub(super) const QUALIFIERS: [(&str, &str); 5] =
    [("", ""), ("new_", "new "), ("first_", "first "), ("second_", "second "), ("main_", "main ")];
