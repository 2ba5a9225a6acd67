//! Figures from what a VM's shim notes about its drives at log level `debug`.

/// The middle value; 0 of none.
#[must_use]
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// How long drives took on one way, in one kind of slot.
#[derive(Debug, PartialEq)]
pub struct DriveTimes {
    /// `attach and mount` or `unmount and release`.
    pub what: &'static str,
    /// How the slots' names begin: `ctrstub` for containers' disks, `imgstub` for shared images.
    pub slots: &'static str,
    /// Milliseconds, one number per drive.
    pub all: Vec<f64>,
}

impl std::fmt::Display for DriveTimes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = median(self.all.iter().copied());
        let worst = self.all.iter().copied().fold(0.0, f64::max);
        write!(
            f,
            "{:<20} {:<8} {time:>9.2} ms, worst {worst:.2} of {}",
            self.what,
            self.slots,
            self.all.len()
        )
    }
}

/// The times in these lines of a shim's log; without a time where the log has none.
#[must_use]
pub fn drive_times(log: &[String]) -> Vec<DriveTimes> {
    let ways = [
        ("drive attached", "attach and mount"),
        ("drive released", "unmount and release"),
    ];
    let ways = ways
        .iter()
        .flat_map(|way| ["ctrstub", "imgstub"].map(|slots| (way, slots)));
    ways.map(|((noted, what), slots)| {
        let lines = log.iter();
        let lines = lines.filter(|line| line.contains(noted) && line.contains(slots));
        DriveTimes {
            what,
            slots,
            all: lines.filter_map(|line| milliseconds(line)).collect(),
        }
    })
    .collect()
}

fn milliseconds(line: &str) -> Option<f64> {
    let number = line.split("us=").nth(1)?;
    let end = number.find(|c: char| !c.is_ascii_digit());
    let microseconds: f64 = number[..end.unwrap_or(number.len())].parse().ok()?;
    Some(microseconds / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).abs() < 1e-9);
    }

    #[test]
    fn drives_in_a_log() {
        let log = [
            "DEBUG drive attached drive=\"ctrstub0\" us=5200",
            "DEBUG drive attached drive=\"imgstub0\" us=2500 more",
            "DEBUG drive attached drive=\"ctrstub0\" us=4800",
            "INFO The VM runs us=1",
        ];
        let times = drive_times(&log.map(str::to_owned));
        let all: Vec<_> = times.iter().map(|times| times.all.clone()).collect();
        assert_eq!(all, [vec![5.2, 4.8], vec![2.5], vec![], vec![]]);
        let text = times[0].to_string();
        assert_eq!(
            text,
            "attach and mount     ctrstub       5.00 ms, worst 5.20 of 2"
        );
    }
}
