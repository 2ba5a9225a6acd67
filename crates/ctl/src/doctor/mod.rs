//! `doctor`: everything a VM needs from its host, looked at in one go.
//!
//! Each check answers with findings; one that failed does not keep the others from being made.

mod containerd;
mod files;
mod machine;
mod vmm;
mod vms;

use std::process::ExitCode;

use clap::Args as ClapArgs;
use fc_config::Config;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::args::{Args, Command};
use crate::host::load_config;
use crate::output::Output;

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, ClapArgs)]
#[command(
    after_help = "Examples:\n  firecracker-ctl doctor\n  firecracker-ctl doctor --full --json"
)]
pub struct DoctorArgs {
    /// Read every image whole and compare checksums.
    #[arg(long)]
    full: bool,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, but somebody may want to know.
    Note,
    /// VMs will not start, or not be cleaned up after.
    Problem,
}

/// What a check found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    level: Level,
    /// What was found.
    found: String,
    /// What to do about it; empty when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn note(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Note,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Problem,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// Makes all checks and prints what they found. The exit code is 1 when something has to be done.
pub fn run(args: &Args, runtime: &Runtime) -> ExitCode {
    let full = matches!(args.command, Command::Doctor(DoctorArgs { full: true }));
    let mut findings = Vec::new();
    let config = configuration(args, &mut findings);
    findings.extend(vmm::check(&config));
    findings.extend(containerd::check(&args.containerd_address));
    findings.extend(files::check(&config, full));
    findings.extend(machine::check(&config));
    findings.extend(runtime.block_on(vms::check(&config)));
    Output::new(args.json).print(&findings, |findings| text(findings));
    if findings
        .iter()
        .any(|finding| finding.level == Level::Problem)
    {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The configuration; its defaults when it does not load, so that the rest can be looked at.
fn configuration(args: &Args, findings: &mut Vec<Finding>) -> Config {
    const CHECK: &str = "configuration";
    match load_config(args) {
        Ok(loaded) => {
            findings.push(Finding::ok(CHECK, loaded.path.display().to_string()));
            let notes = loaded.warnings.iter().map(|warning| {
                Finding::note(CHECK, warning.to_string(), "correct or remove the key")
            });
            findings.extend(notes);
            loaded.config
        }
        Err(error) => {
            findings.push(Finding::problem(
                CHECK,
                fc_errors::chain(&error),
                "write the file (`{}` is enough) or correct it; what follows is checked with the defaults",
            ));
            Config::default()
        }
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Note => "note   ",
            Level::Problem => "PROBLEM",
        };
        text.push_str(&format!(
            "{mark}  {:width$}  {}\n",
            finding.check, finding.found
        ));
        if !finding.advice.is_empty() {
            text.push_str(&format!("{:width$}           -> {}\n", "", finding.advice));
        }
    }
    text.push_str(
        match findings
            .iter()
            .filter(|f| f.level == Level::Problem)
            .count()
        {
            0 => "Nothing has to be done",
            _ => "VMs will not work as they should until the problems are solved",
        },
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_comes_with_what_to_do() {
        let findings = [
            Finding::ok("a", "fine"),
            Finding::problem("long", "missing", "install it"),
        ];
        let text = text(&findings);
        assert!(text.contains("ok       a     fine\n"), "{text}");
        assert!(text.contains("PROBLEM  long  missing\n"), "{text}");
        assert!(text.contains("-> install it\n"), "{text}");
    }
}
