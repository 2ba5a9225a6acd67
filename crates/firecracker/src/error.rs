//! What can go wrong with a call.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::VmmEnd;
use crate::api::InstanceState;

/// A call of the API, shown as `PUT /drives/root_drive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The HTTP method.
    pub method: String,
    /// The path, with the id in it.
    pub path: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Why a call failed. What the VM was doing is shown behind the call: `PATCH /vm (VM running)`.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The VMM answered that it will not or cannot do it.
    #[error("The VMM refused {call}{}: {fault_message}", Context(Some(*status), *state))]
    Refused {
        /// The call.
        call: Call,
        /// The HTTP status.
        status: u16,
        /// The VMM's reason, in its own words.
        fault_message: String,
        /// What the VM was doing right after that; `None` if the VMM did not say.
        state: Option<InstanceState>,
    },
    /// No VMM accepts connections.
    #[error("Cannot reach the VMM at {} for {call}", socket.display())]
    Connect {
        /// The call.
        call: Call,
        /// The API's socket.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The VMM did not answer in time. Whether it did what it was asked to is not known.
    #[error("The VMM did not answer {call}{} within {bound:?}", Context(None, *state))]
    TimedOut {
        /// The call.
        call: Call,
        /// How long was waited.
        bound: Duration,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
    },
    /// Other calls took so long that this one was not made.
    #[error("The VMM was busy with other calls for {bound:?}, so {call}{} was not made", Context(None, *state))]
    Busy {
        /// The call.
        call: Call,
        /// How long was waited.
        bound: Duration,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
    },
    /// The VMM's process ended, before or during the call.
    #[error("The VMM was gone at {call}{}: {end}", Context(None, *state))]
    VmmGone {
        /// The call.
        call: Call,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
        /// How it ended.
        end: VmmEnd,
    },
    /// The connection failed, and the VMM still runs as far as is known.
    #[error("The connection to the VMM failed during {call}{}", Context(None, *state))]
    Transport {
        /// The call.
        call: Call,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
        /// The HTTP client's error.
        source: hyper::Error,
    },
    /// What was to be sent cannot be written as JSON.
    #[error("Cannot encode the body of {call}")]
    Encode {
        /// The call.
        call: Call,
        /// The encoder's error.
        source: serde_json::Error,
    },
    /// The answer is larger than any answer of the API.
    #[error("The VMM's answer to {call}{} is too long or broken off", Context(None, *state))]
    BadBody {
        /// The call.
        call: Call,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
        /// The HTTP client's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the API describes.
    #[error("The VMM's answer to {call}{} makes no sense: {answer:?}", Context(None, *state))]
    BadAnswer {
        /// The call.
        call: Call,
        /// What the VM was doing when it was last heard of; `None` if that is not known.
        state: Option<InstanceState>,
        /// The start of the answer.
        answer: String,
        /// The decoder's error.
        source: serde_json::Error,
    },
}

/// What is known of a call's circumstances, in brackets behind it: the answer's status and the VM's state.
struct Context(Option<u16>, Option<InstanceState>);

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(status), Some(state)) => write!(f, " (status {status}, VM {state})"),
            Self(Some(status), None) => write!(f, " (status {status})"),
            Self(None, Some(state)) => write!(f, " (VM {state})"),
            Self(None, None) => Ok(()),
        }
    }
}
