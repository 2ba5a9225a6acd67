//! The VM's life, from a request to the end of its VMM.

use std::sync::Arc;

use fc_proto::control::{CreateVMRequest, TOPIC_VM_START, VMStart};
use fc_proto::guest::feature;
use fc_vm::guest_image;
use fc_vm::machine::{BootError, Machine, SpecError, VmSpec, boot, host_is_intel};
use fc_vm::state::State;
use fc_vm::timeline::now_ns;

use super::error::{CallError, StartError};
use super::guest_events;
use super::io::{Listen, Ports};
use super::shim::{Phase, Running, Shim};
use super::stop;

/// Who asked for the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The launcher, with the request on stdin. It may be gone, and so may whoever it did that for: the VM
    /// is everybody's who knows its id, and the reason of a failure is kept until somebody asks.
    Launcher,
    /// CreateVM on the control socket. The VM is the caller's, who is told how it went.
    Call,
}

/// Begins the VM's life. How it goes is seen in the shim's phase.
///
/// # Errors
/// When it has begun before.
pub fn begin(shim: &Arc<Shim>, request: CreateVMRequest, origin: Origin) -> Result<(), CallError> {
    if !shim.claim_creation() {
        return Err(CallError::CreatedAlready);
    }
    // All of these are set once: here.
    let _ = shim.created.set(now_ns());
    let spec = VmSpec::new(&shim.config, &request, host_is_intel());
    if let Ok(spec) = &spec {
        let _ = shim.asked.set(spec.clone());
    }
    tokio::spawn(live(Arc::clone(shim), spec, origin));
    Ok(())
}

async fn live(shim: Arc<Shim>, spec: Result<VmSpec, SpecError>, origin: Origin) {
    let started = tokio::select! {
        biased;
        () = shim.start_cancelled() => Err(StartError::Stopped),
        started = start(&shim, spec) => started,
    };
    let machine = match started {
        Ok(machine) => machine,
        Err(error) => return stop::after_failure(&shim, error, origin).await,
    };
    tracing::info!(
        vmm_pid = machine.vmm_pid(),
        agent = machine.guest().version().unwrap_or("of the original"),
        "The VM runs"
    );
    let event = VMStart {
        VMID: shim.dir.vm_id().to_owned(),
        ..VMStart::default()
    };
    shim.events.publish(TOPIC_VM_START, "VMStart", &event);
    let ports = ports(&machine);
    let running = Arc::new(Running::new(machine, ports));
    let _ = shim.came_up.set(now_ns());
    shim.set_phase(Phase::Running(Arc::clone(&running)));
    let events = tokio::spawn(guest_events::follow(
        Arc::clone(&shim),
        Arc::clone(&running),
    ));
    let end = running.machine.exited().await;
    shim.tasks.close();
    guest_events::finish(events).await;
    stop::after_end(&shim, &running, &end).await;
}

/// Ports for processes' streams.
fn ports(machine: &Machine) -> Ports {
    let listen: Option<Listen> = machine.guest().has(feature::HOST_LISTENS).then(|| {
        let ports = machine.ports().clone();
        Box::new(move |port| ports.listen(port)) as Listen
    });
    Ports::new(machine.vsock(), listen)
}

async fn start(shim: &Shim, spec: Result<VmSpec, SpecError>) -> Result<Machine, StartError> {
    let spec = spec.map_err(BootError::from)?;
    check_memory(&spec)?;
    let state = State::load(&shim.dir).map_err(BootError::from)?;
    let mut state = state.unwrap_or_else(|| State::new(&shim.dir));
    let machine = boot(
        &shim.dir,
        &shim.config,
        spec,
        &mut state,
        &shim.timeline,
        &shim.progress,
    )
    .await?;
    Ok(machine)
}

/// Refuses what would only end in a panic of the guest's kernel.
fn check_memory(spec: &VmSpec) -> Result<(), StartError> {
    let image = guest_image::describe(&spec.root.path);
    match image.map(|image| image.min_memory_mib) {
        Some(least) if spec.memory_mib < least => Err(StartError::Memory {
            asked: spec.memory_mib,
            least,
            image: spec.root.path.clone(),
        }),
        _ => Ok(()),
    }
}
