//! `strftime_now`, in the C locale, from a time that the caller took.

use minijinja::{Error, ErrorKind};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LocalTime {
    pub year: i32,
    pub month: i32,
    pub day: i32,
    pub hour: i32,
    pub minute: i32,
    pub second: i32,
    /// From Sunday.
    pub weekday: i32,
    /// From 1.
    pub day_of_year: i32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl LocalTime {
    pub fn format(&self, pattern: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            // glibc's flag: no padding.
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            out.push_str(&self.directive(directive, bare)?);
        }
        Ok(out)
    }

    fn directive(&self, directive: Option<char>, bare: bool) -> Result<String, Error> {
        let number = |value: i32, width: usize| {
            let width = if bare { 0 } else { width };
            format!("{value:0width$}")
        };
        let day = DAYS[self.weekday.rem_euclid(7) as usize];
        let month = MONTHS[(self.month - 1).rem_euclid(12) as usize];
        let hour12 = (self.hour + 11).rem_euclid(12) + 1;
        Ok(match directive {
            Some('a') => day[..3].to_owned(),
            Some('A') => day.to_owned(),
            Some('b' | 'h') => month[..3].to_owned(),
            Some('B') => month.to_owned(),
            Some('c') => self.format("%a %b %e %H:%M:%S %Y")?,
            Some('d') => number(self.day, 2),
            Some('D' | 'x') => self.format("%m/%d/%y")?,
            Some('e') if bare => number(self.day, 0),
            Some('e') => format!("{:2}", self.day),
            Some('F') => self.format("%Y-%m-%d")?,
            Some('H') => number(self.hour, 2),
            Some('I') => number(hour12, 2),
            Some('j') => number(self.day_of_year, 3),
            Some('m') => number(self.month, 2),
            Some('M') => number(self.minute, 2),
            Some('n') => "\n".to_owned(),
            Some('p') => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('S') => number(self.second, 2),
            Some('t') => "\t".to_owned(),
            Some('T' | 'X') => self.format("%H:%M:%S")?,
            Some('u') => number((self.weekday + 6).rem_euclid(7) + 1, 1),
            Some('w') => number(self.weekday, 1),
            Some('y') => number(self.year.rem_euclid(100), 2),
            Some('Y') => self.year.to_string(),
            Some('%') => "%".to_owned(),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: directive '%{name}' is not supported"),
                ));
            }
        })
    }
}
