//! Where the time of one call went, from the named parts that a VM's shim reports.

use fc_proto::vm::Span;

/// One CreateVM: how long its caller waited, and the parts.
pub struct Sample {
    /// When the call began, in nanoseconds since 1970.
    pub begin_ns: u64,
    /// When it was answered.
    pub end_ns: u64,
    /// The parts. Some may lie in others.
    pub spans: Vec<Span>,
}

impl Sample {
    /// Milliseconds that the caller waited.
    pub fn total(&self) -> f64 {
        ms(self.end_ns - self.begin_ns)
    }

    /// Milliseconds in which the VMM, the guest or the jail's OCI runtime was waited for; time in which
    /// two were waited for counts once.
    pub fn waiting(&self) -> f64 {
        let waits = self.spans.iter().filter(|span| !span.waits_for.is_empty());
        let mut intervals: Vec<(u64, u64)> = waits
            .map(|span| {
                let begin = span.start_unix_ns.clamp(self.begin_ns, self.end_ns);
                let end = span.start_unix_ns + span.duration_ns;
                (begin, end.clamp(begin, self.end_ns))
            })
            .collect();
        intervals.sort_unstable();
        let mut covered = 0;
        let mut reached = self.begin_ns;
        for (begin, end) in intervals {
            covered += end.saturating_sub(begin.max(reached));
            reached = reached.max(end);
        }
        ms(covered)
    }

    /// Milliseconds that are our own: all that is no waiting, whether it has a name or not.
    pub fn own(&self) -> f64 {
        self.total() - self.waiting()
    }

    /// Milliseconds of all parts that wait for nobody.
    pub fn own_named(&self) -> f64 {
        let own = self.spans.iter().filter(|span| span.waits_for.is_empty());
        ms(own.map(|span| span.duration_ns).sum())
    }

    /// Milliseconds of all parts of this name.
    pub fn named(&self, name: &str) -> f64 {
        let named = self.spans.iter().filter(|span| span.name == name);
        ms(named.map(|span| span.duration_ns).sum())
    }
}

fn ms(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, begin_ms: u64, ms: u64, waits_for: &str) -> Span {
        Span {
            name: name.to_owned(),
            start_unix_ns: begin_ms * 1_000_000,
            duration_ns: ms * 1_000_000,
            waits_for: waits_for.to_owned(),
            ..Span::default()
        }
    }

    #[test]
    fn waiting_counts_once_and_the_rest_is_ours() {
        let sample = Sample {
            begin_ns: 10_000_000,
            end_ns: 110_000_000,
            spans: vec![
                span("check", 11, 2, ""),
                span("vmm", 20, 30, "vmm"),
                span("inner", 25, 5, "guest"),
                span("boot", 40, 60, "guest"),
                span("before", 5, 10, "vmm"),
            ],
        };
        // 10 to 15 and 20 to 100.
        assert!((sample.waiting() - 85.0).abs() < 1e-6);
        assert!((sample.own() - 15.0).abs() < 1e-6);
        assert!((sample.named("check") - 2.0).abs() < 1e-6);
        assert!((sample.own_named() - 2.0).abs() < 1e-6);
    }
}
