//! Sees the guest calibrate its timer, and starts it anew where the host has spoilt that.
//!
//! The only timer of a microvm guest is the processor's local APIC timer. Linux measures its speed once, early in the
//! boot: it lets it count for a tenth of a second, which it divides into ticks by the TSC (`calibrate_APIC_clock` in
//! arch/x86/kernel/apic/apic.c). Both clocks go on while a busy host does not run the processor's thread. If that lasts
//! for 100 ms within the first tick, the kernel makes up for all ticks at once, sees a timer that has hardly counted,
//! says "APIC frequency too slow, disabling apic timer", and goes on without a timer: the guest boots, but from then on
//! it does nothing unless a device interrupts it, and sooner or later waits for ever. A shorter or later gap leaves a
//! timer that is a multiple too fast or too slow.
//!
//! Firecracker's guests do not calibrate (KVM offers them the TSC deadline timer), and there is no kernel argument for
//! the timer's speed. But the timer's registers show what happened, while the guest is still far from its first program.
//!
//! At a load of 30 to 40 on two processors one boot of 60 hung; one of six is started anew.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::qemu::{QemuError, Qmp};

/// Between two looks: nothing tells when the guest programs its timer.
const INTERVAL: Duration = Duration::from_millis(50);
/// A guest that has not used the timer for so long after its start, or its new start, does without.
const GIVE_UP: Duration = Duration::from_secs(300);
/// So often is a guest started anew; then the host is so busy that it is left as it is.
const MAX_RESETS: u32 = 10;
/// Linux takes 104 ms. What is seen to take longer has measured at least twice too much, or nothing.
const LONGEST_CALIBRATION: Duration = Duration::from_millis(220);
/// The count that Linux begins a calibration with: all ones, divided by 16.
const CALIBRATION_COUNT: u32 = u32::MAX / 16;
/// Nanoseconds of QEMU's for one count at Linux' divisor of 16.
const NS_PER_COUNT: u64 = 16;
/// Counts of one tick with each `CONFIG_HZ` that Linux offers: 1000, 300, 250 and 100.
const TICKS: [u32; 4] = [62_500, 208_333, 250_000, 625_000];
/// How Linux sets the timer up (`LOCAL_TIMER_VECTOR`, `APIC_TDR_DIV_16`): other guests are not judged.
const LINUX: (&str, &str) = ("(vec 236)", "DCR=0x3 ");

/// What the timer's registers say of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// It has not touched the timer.
    Unused,
    /// It measures the timer, or has given that up; this long ago it began.
    Calibrating(Duration),
    /// Its tick has an impossible length.
    Wrong,
    /// It uses the timer.
    Works,
}

/// Watches a guest that was just started, and lets it start anew if it comes out of the calibration with no timer or
/// a wrong one. Whoever holds `running` keeps the guest from being looked at: a guest whose processors are held cannot
/// be reset. Ends with QEMU.
pub(super) async fn watch(qmp: Qmp, running: Arc<Mutex<()>>) {
    if let Err(error) = guard(&qmp, &running).await {
        // QEMU's end is told by others.
        log::debug!("The guest's timer is not watched any more: {error}");
    }
}

async fn guard(qmp: &Qmp, running: &Mutex<()>) -> Result<(), QemuError> {
    let mut give_up = Instant::now() + GIVE_UP;
    let mut resets = 0;
    while Instant::now() < give_up {
        sleep(INTERVAL).await;
        let _running = running.lock().await;
        let timer = match read(qmp).await {
            Err(QemuError::Timeout { .. }) => continue,
            timer => timer?,
        };
        let spoilt = match timer {
            Timer::Works => return Ok(()),
            Timer::Unused => false,
            Timer::Calibrating(since) => since > LONGEST_CALIBRATION,
            Timer::Wrong => true,
        };
        if !spoilt {
            continue;
        }
        if resets == MAX_RESETS {
            log::error!(
                "The host is too busy for the guest to measure its timer: the guest may hang"
            );
            return Ok(());
        }
        resets += 1;
        log::warn!(
            "The host was too busy while the guest measured its timer: the guest is started anew"
        );
        match reset(qmp).await {
            // It comes late, and what the guest measures then is looked at as well.
            Err(QemuError::Timeout { .. }) => {}
            done => done?,
        }
        give_up = Instant::now() + GIVE_UP;
    }
    Ok(())
}

async fn read(qmp: &Qmp) -> Result<Timer, QemuError> {
    // There is no command for programs that tells.
    let command = json!({ "command-line": "info lapic" });
    let answer = qmp.execute("human-monitor-command", command).await?;
    let text = answer.as_str().unwrap_or_default();
    parse(text).ok_or_else(|| QemuError::Protocol(format!("no APIC timer in {text:?}")))
}

/// Resets the machine, which otherwise ends QEMU: a guest's own reset is the guest's end.
async fn reset(qmp: &Qmp) -> Result<(), QemuError> {
    let reset = async {
        let set = qmp.execute("set-action", json!({ "reboot": "reset" }));
        set.await?;
        // What a reset does is decided when it is asked for.
        qmp.execute("system_reset", json!({})).await
    };
    let reset = reset.await;
    // Also if nothing of that was answered in time: QEMU does one after the other.
    qmp.execute("set-action", json!({ "reboot": "shutdown" }))
        .await?;
    reset.map(drop)
}

/// Reads what `info lapic` prints.
fn parse(text: &str) -> Option<Timer> {
    let line = |name| {
        text.lines()
            .find(|line| line.split('\t').next() == Some(name))
    };
    let lvt = line("LVTT")?;
    let timer = line("Timer")?;
    let count = |name: &str| -> Option<u32> {
        let (_, rest) = timer.split_once(&format!("{name} = "))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (initial, current) = (count("initial_count")?, count("current_count")?);
    let linux = lvt.contains(LINUX.0) && timer.contains(LINUX.1);
    let says = |word| lvt.split_whitespace().any(|it| it == word);
    Some(match (initial, says("masked"), says("periodic")) {
        // Mode and vector are written before the count; a one-shot timer with a vector has been used and rests.
        (0, _, true) => Timer::Unused,
        (0, _, false) if lvt.contains("(vec 0)") => Timer::Unused,
        (CALIBRATION_COUNT, true, _) if linux => {
            let counts = u64::from(initial.saturating_sub(current));
            Timer::Calibrating(Duration::from_nanos(counts * NS_PER_COUNT))
        }
        (tick, false, true) if linux && !is_tick(tick) => Timer::Wrong,
        _ => Timer::Works,
    })
}

/// Whether some Linux would count so far from tick to tick, a fifth more or less.
fn is_tick(counts: u32) -> bool {
    TICKS.iter().any(|tick| tick.abs_diff(counts) <= tick / 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 10.0 prints of the timer.
    fn printed(lvt: &str, initial: u32, current: u32) -> String {
        format!(
            "dumping local APIC state for CPU 0 \r\n\r\nLVT0\t 0x00010700 active-hi edge  masked                      ExtINT (vec 0)\r\n\
             LVTTHMR\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)\r\n\
             LVTT\t {lvt}\r\n\
             Timer\t DCR=0x3 (divide by 16) initial_count = {initial} current_count = {current}\r\n"
        )
    }

    #[test]
    fn what_the_registers_say() {
        let reset = "0x00010000 active-hi edge  masked         one-shot     Fixed  (vec 0)";
        let calibrating = "0x000300ec active-hi edge  masked         periodic     Fixed  (vec 236)";
        let periodic = "0x000200ec active-hi edge                 periodic     Fixed  (vec 236)";
        let others = "0x00020020 active-hi edge                 periodic     Fixed  (vec 32)";
        let one_shot = "0x000000ec active-hi edge                 one-shot     Fixed  (vec 236)";
        let all = CALIBRATION_COUNT;
        let ms = Duration::from_millis;
        for (lvt, initial, current, expected) in [
            (reset, 0, 0, Timer::Unused),
            (calibrating, 0, 0, Timer::Unused),
            (calibrating, all, all, Timer::Calibrating(ms(0))),
            (
                calibrating,
                all,
                all - 6_250_000,
                Timer::Calibrating(ms(100)),
            ),
            (periodic, 250_000, 7, Timer::Works),
            (periodic, 62_500, 7, Timer::Works),
            (periodic, 200, 7, Timer::Wrong),
            (periodic, 400_000, 7, Timer::Wrong),
            (periodic, 780_000, 7, Timer::Wrong),
            (others, 780_000, 7, Timer::Works),
            (one_shot, 18_479_502, 0, Timer::Works),
            (one_shot, 12, 0, Timer::Works),
            (one_shot, 0, 0, Timer::Works),
        ] {
            let text = printed(lvt, initial, current);
            assert_eq!(parse(&text), Some(expected), "{text}");
        }
        assert_eq!(parse("unknown command: 'info lapic'\r\n"), None);
    }
}
