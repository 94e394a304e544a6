#!/usr/bin/env bash
# slurm_local.sh - a throw-away one-machine SLURM cluster for tests.
#
#   slurm_local.sh start      install the packages if missing, write the config, start, wait for idle
#   eval "$(slurm_local.sh env)"   put this cluster (and its sacct stand-in) into the current shell
#   slurm_local.sh run CMD..  run CMD with that environment
#   slurm_local.sh status | stop | restart | purge | selftest | install | logs
#
# Plain processes only: no systemd, no cgroups, no accounting database, no GPU.
# Everything it writes is under $SLURM_LOCAL_DIR. All commands are idempotent.
# Needs one network interface besides the loopback (a container without any network will not do).
# Needs root for the normal mode (jobs of any user); run by another user it makes
# a cluster that only that user can use (packages must then be installed already).
#
# Knobs (environment):
#   SLURM_LOCAL_DIR     /var/spool/slurm-local   state, config, logs, sockets, pids
#                       (keep it short: it holds a unix socket, limit 107 characters)
#   SLURM_LOCAL_CPUS    8      CPUs each node claims (may exceed the real number)
#   SLURM_LOCAL_MEM_MB  65536  memory each node claims, MB (not enforced)
#   SLURM_LOCAL_GPUS    4      fake GPUs per node (symlinks to /dev/null); 0 = no gres
#   SLURM_LOCAL_NODES   1      number of nodes, all on this machine
#   SLURM_LOCAL_PORT    16817  slurmctld port; slurmd N listens on PORT+N
#   SLURM_LOCAL_CRED_S  5      credential lifetime = the wait before a requeued job restarts
#   SLURM_LOCAL_ACCT    0      1 = real accounting (slurmdbd + a private mariadbd on
#                              PORT-1 and PORT-2) instead of the sacct stand-in
set -euo pipefail
export PATH="/usr/local/sbin:/usr/sbin:/sbin:$PATH"

DIR=${SLURM_LOCAL_DIR:-/var/spool/slurm-local}
CPUS=${SLURM_LOCAL_CPUS:-8}
MEM=${SLURM_LOCAL_MEM_MB:-65536}
GPUS=${SLURM_LOCAL_GPUS:-4}
NODES=${SLURM_LOCAL_NODES:-1}
PORT=${SLURM_LOCAL_PORT:-16817}
CRED=${SLURM_LOCAL_CRED_S:-5}
ACCT=${SLURM_LOCAL_ACCT:-0}
CONF=$DIR/etc/slurm.conf
MSOCK=$DIR/munge/socket
ME=$(id -un)

say() { printf 'slurm-local: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

install_pkgs() {
    local want=()
    if ! { have slurmctld && have slurmd && have sbatch && have munged; }; then
        want+=(slurmctld slurmd slurm-client munge)
    fi
    if [ "$ACCT" = 1 ] && ! { have slurmdbd && have mariadbd; }; then want+=(slurmdbd mariadb-server-core); fi
    if [ ${#want[@]} = 0 ]; then return 0; fi
    have apt-get || die "missing and this is no Debian: ${want[*]}"
    [ "$(id -u)" = 0 ] || die "need root to install ${want[*]}"
    say "installing ${want[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # keep the package scripts from starting the system-wide daemons
    local block=0
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; block=1
    fi
    local rc=0
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${want[@]}"; } \
        >/tmp/slurm-local-apt.log 2>&1 || rc=$?
    if [ $block = 1 ]; then rm -f /usr/sbin/policy-rc.d; fi
    [ $rc = 0 ] || { tail -n 20 /tmp/slurm-local-apt.log >&2; die "package installation failed ($rc)"; }
}

# pid NAME EXE -> prints the pid in $DIR/run/NAME.pid when that process really is EXE
pid_of() {
    local p f=$DIR/run/$1.pid
    [ -s "$f" ] || return 1
    p=$(tr -dc 0-9 <"$f")
    [ -n "$p" ] && [ -r "/proc/$p/comm" ] && [ "$(cat "/proc/$p/comm")" = "$2" ] || return 1
    echo "$p"
}

node_names() { seq -f 'n%g' 1 "$NODES"; }

acct_conf() {
    if [ "$ACCT" = 1 ]; then
        printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=127.0.0.1 \
            "AccountingStoragePort=$((PORT - 1))" "AccountingStoragePass=$MSOCK" "AccountingStorageTRES=gres/gpu"
    else
        echo AccountingStorageType=accounting_storage/none
    fi
}

start_acct() { # a database nobody else can reach, and slurmdbd on it
    local i
    mkdir -p "$DIR/db"
    mariadbd --no-defaults --user="$ME" --datadir="$DIR/db" --socket="$DIR/run/db.sock" --port=$((PORT - 2)) \
        --bind-address=127.0.0.1 --pid-file="$DIR/run/mariadbd.pid" --skip-grant-tables \
        --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 </dev/null >"$DIR/log/mariadbd.log" 2>&1 9>&- &
    disown
    for i in $(seq 100); do [ -S "$DIR/run/db.sock" ] && break; sleep 0.1; done
    (umask 077; cat >"$DIR/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=$MSOCK
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT - 1))
SlurmUser=$ME
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT - 2))
StorageUser=root
StoragePass=none
StorageLoc=slurm_acct
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
CONF
    )
    SLURM_CONF=$CONF slurmdbd </dev/null >>"$DIR/log/start.out" 2>&1 9>&- || die "slurmdbd: see $DIR/log"
    for i in $(seq 100); do client sacctmgr -i -n list cluster >/dev/null 2>&1 && break; sleep 0.1; done
    client sacctmgr -i add cluster local >/dev/null 2>&1 || true
}

listen_conf() { # only 127.0.0.1 where the host name says so; slurmctld resolves its own name for this
    if [ "$(getent ahostsv4 "$(hostname -s)" 2>/dev/null | awk 'NR==1{print $1}')" = 127.0.0.1 ]; then
        echo CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
    else
        echo "# listening on all interfaces: $(hostname -s) does not resolve to 127.0.0.1"
    fi
}

write_conf() {
    local host i; host=$(hostname -s)
    mkdir -p "$DIR"/{etc,ctld,d,log,run,munge,dev,bin}
    chmod 755 "$DIR" "$DIR"/{etc,log,run,munge,dev,bin}
    if [ ! -s "$DIR/munge/key" ]; then
        (umask 077; dd if=/dev/urandom of="$DIR/munge/key" bs=1 count=1024 status=none)
    fi
    chmod 600 "$DIR/munge/key"
    {
        cat <<CONF
# written by slurm_local.sh - do not edit
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
$(listen_conf)
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$MSOCK,cred_expire=$CRED
StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/d/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MailProg=/bin/true
# no cgroups, no systemd, no enforcement
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
$(acct_conf)
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
# scheduling: fast reaction, real preemption between partitions
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
SchedulerParameters=sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
SlurmdTimeout=30
ReturnToService=2
# the sacct stand-in can only see jobs that slurmctld still remembers
MinJobAge=86400
MaxJobCount=20000
MaxArraySize=10001
CONF
        if [ "$GPUS" -gt 0 ]; then echo "GresTypes=gpu"; fi
        i=0
        for n in $(node_names); do
            i=$((i + 1))
            printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%s CPUs=%s RealMemory=%s' \
                "$n" "$host" "$((PORT + i))" "$CPUS" "$MEM"
            if [ "$GPUS" -gt 0 ]; then printf ' Gres=gpu:%s' "$GPUS"; fi
            printf ' State=UNKNOWN\n'
        done
        cat <<'CONF'
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low   Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=20
PartitionName=high  Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
PartitionName=gpu   Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    } >"$CONF.new"
    mv -f "$CONF.new" "$CONF"
    : >"$DIR/etc/gres.conf"
    if [ "$GPUS" -gt 0 ]; then
        # Count= without File= registers 0 GPUs, and a File must be a device: point at /dev/null
        for i in $(seq 0 $((GPUS - 1))); do ln -sfn /dev/null "$DIR/dev/gpu$i"; done
        if [ "$GPUS" = 1 ]; then echo "Name=gpu File=$DIR/dev/gpu0"
        else echo "Name=gpu File=$DIR/dev/gpu[0-$((GPUS - 1))]"; fi >"$DIR/etc/gres.conf"
    fi
    if [ "$ACCT" = 1 ]; then rm -f "$DIR/bin/sacct"; else write_sacct; fi
}

write_sacct() {
    cat >"$DIR/bin/sacct" <<'SACCT'
#!/usr/bin/env python3
"""Stand-in for sacct on a cluster without accounting: answers
`sacct -o F,.. --parsable2 [-n] -j ID ..` from `scontrol -o show job`."""
import re, subprocess, sys
args, fields, jobs, header = sys.argv[1:], "JobID,JobName,State,ExitCode", [], True
i = 0
while i < len(args):
    a = args[i]
    k, _, v = a.partition("=")
    if k in ("-o", "--format", "-j", "--jobs"):
        if not v:
            i += 1
            v = args[i]
        if k in ("-o", "--format"):
            fields = v
        else:
            jobs += v.split(",")
    elif a in ("-n", "--noheader"):
        header = False
    i += 1
names = [f.split("%")[0] for f in fields.split(",") if f]
KEY = {"state": "JobState", "nodelist": "NodeList", "jobname": "JobName", "exitcode": "ExitCode",
       "start": "StartTime", "end": "EndTime", "submit": "SubmitTime", "elapsed": "RunTime",
       "partition": "Partition", "restarts": "Restarts", "timelimit": "TimeLimit", "reason": "Reason"}
if header:
    print("|".join(names))
for job in dict.fromkeys(jobs) if jobs else [""]:
    r = subprocess.run(["scontrol", "-o", "show", "job"] + ([job] if job else []),
                       capture_output=True, text=True)
    for line in r.stdout.splitlines():
        kv = dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", line))
        if "JobId" not in kv:
            continue
        jid = kv["JobId"]
        if "ArrayJobId" in kv:
            t = kv.get("ArrayTaskId", "")
            jid = kv["ArrayJobId"] + ("_" + t if t.isdigit() else "_[" + t + "]")
        print("|".join(jid if n.lower() == "jobid" else kv.get(KEY.get(n.lower(), n), "") for n in names))
SACCT
    chmod 755 "$DIR/bin/sacct"
}

client() { SLURM_CONF=$CONF "$@"; }

print_env() {
    printf 'export SLURM_CONF=%q\nexport PATH=%q:"$PATH"\n' "$CONF" "$DIR/bin"
}

ready() {
    [ -s "$CONF" ] || return 1
    pid_of munged munged >/dev/null && pid_of slurmctld slurmctld >/dev/null || return 1
    local states; states=$(client timeout 3 sinfo -h -N -p debug -o %t 2>/dev/null) || return 1
    [ "$(grep -cE '^(idle|mix|alloc|comp|plnd|resv)$' <<<"$states")" = "$(grep -c . <<<"$states")" ] && [ -n "$states" ]
}

start() {
    mkdir -p "$DIR"
    exec 9>"$DIR/.lock"; flock -w 120 9 || die "another start is in progress"
    if ready; then say "already running ($CONF)"; return 0; fi
    install_pkgs
    [ ${#MSOCK} -le 100 ] || die "SLURM_LOCAL_DIR is too long for a unix socket"
    local n i
    stop_daemons
    write_conf
    rm -f "$MSOCK" "$MSOCK.lock"
    munged --force --socket="$MSOCK" --key-file="$DIR/munge/key" --pid-file="$DIR/run/munged.pid" \
        --seed-file="$DIR/munge/seed" --log-file="$DIR/log/munged.log" </dev/null >/dev/null 2>>"$DIR/log/munged.err" 9>&- \
        || { cat "$DIR/log/munged.err" >&2; die "munged did not start"; }
    for i in $(seq 50); do munge -n -S "$MSOCK" >/dev/null 2>&1 && break; sleep 0.1; done
    munge -n -S "$MSOCK" | unmunge -S "$MSOCK" >/dev/null || die "munge does not answer"
    # daemons must not keep the caller's stdout (a pipe would never close) nor the lock
    if [ "$ACCT" = 1 ]; then start_acct; fi
    SLURM_CONF=$CONF slurmctld -f "$CONF" </dev/null >>"$DIR/log/start.out" 2>&1 9>&- || die "slurmctld: see $DIR/log"
    for n in $(node_names); do
        mkdir -p "$DIR/d/$n"
        SLURM_CONF=$CONF slurmd -f "$CONF" -N "$n" </dev/null >>"$DIR/log/start.out" 2>&1 9>&- || die "slurmd $n: see $DIR/log"
    done
    for i in $(seq 150); do
        if ready; then say "up: $(client sinfo -h -N -p debug -o '%N:%t:%cCPU:%G' | tr '\n' ' ')"; return 0; fi
        if [ "$i" = 50 ]; then   # a node left down/drained by an earlier run
            client scontrol update nodename=ALL state=resume >/dev/null 2>&1 || true
        fi
        sleep 0.1
    done
    client sinfo -N -l >&2 || true
    tail -n 15 "$DIR"/log/slurmctld.log >&2 || true
    die "nodes did not become idle"
}

wait_gone() { # pid...
    local i p left
    for i in $(seq 100); do
        left=0
        for p in "$@"; do   # a zombie (nobody reaps it) counts as gone
            case "$(sed -n 's/^State:[[:space:]]*//p' "/proc/$p/status" 2>/dev/null)" in ''|Z*) ;; *) left=1 ;; esac
        done
        [ $left = 0 ] && return 0
        sleep 0.1
    done
    return 1
}

# this cluster's processes of one kind, by the SLURM_CONF they were started with
mine() {
    local p
    for p in /proc/[0-9]*; do
        [ "$(cat "$p/comm" 2>/dev/null)" = "$1" ] || continue
        if { tr '\0' '\n' <"$p/environ"; } 2>/dev/null | grep -qxF "SLURM_CONF=$CONF"; then echo "${p#/proc/}"; fi
    done
}

stop_daemons() {
    local p n pids=()
    for n in "$DIR"/run/slurmd-*.pid; do
        [ -e "$n" ] || continue
        n=$(basename "$n" .pid)
        if p=$(pid_of "$n" slurmd); then kill "$p" 2>/dev/null || true; pids+=("$p"); fi
    done
    if p=$(pid_of slurmctld slurmctld); then kill "$p" 2>/dev/null || true; pids+=("$p"); fi
    if [ ${#pids[@]} -gt 0 ]; then wait_gone "${pids[@]}" || kill -9 "${pids[@]}" 2>/dev/null || true; fi
    local rest; rest=$(mine slurmstepd; mine slurmctld; mine slurmd)
    if [ -n "$rest" ]; then
        # shellcheck disable=SC2086
        kill $rest 2>/dev/null || true
        # shellcheck disable=SC2086
        wait_gone $rest || kill -9 $rest 2>/dev/null || true
    fi
    for n in slurmdbd mariadbd munged; do
        if p=$(pid_of "$n" "$n"); then kill "$p" 2>/dev/null || true; wait_gone "$p" || kill -9 "$p" 2>/dev/null || true; fi
    done
    rm -f "$DIR"/run/*.pid "$DIR"/run/db.sock "$MSOCK" "$MSOCK.lock"
}

stop() {
    [ -d "$DIR" ] || { say "nothing to stop"; return 0; }
    if [ -s "$CONF" ] && pid_of slurmctld slurmctld >/dev/null; then
        local i
        client timeout 10 scancel --quiet -u "$ME" 2>/dev/null || true
        client timeout 10 scancel --quiet -t PENDING,RUNNING,SUSPENDED 2>/dev/null || true
        for i in $(seq 80); do
            [ -z "$(client timeout 10 squeue -h 2>/dev/null)" ] && break; sleep 0.1
        done
    fi
    stop_daemons
    say "stopped"
}

restart_controller() { # as a cluster's does now and then, while jobs run on
    local p i
    p=$(pid_of slurmctld slurmctld) || die "not running"
    kill "$p"; wait_gone "$p" || kill -9 "$p" 2>/dev/null || true
    SLURM_CONF=$CONF slurmctld -f "$CONF" </dev/null >>"$DIR/log/start.out" 2>&1 || die "slurmctld: see $DIR/log"
    for i in $(seq 100); do ready && { say "controller restarted"; return 0; }; sleep 0.1; done
    die "the controller did not come back"
}

selftest() {
    local out j t; t=$(mktemp -d "${TMPDIR:-/tmp}/slurm-local.XXXXXX"); chmod 755 "$t"
    eval "$(print_env)"
    out=$(srun -n1 bash -c 'echo ok') && [ "$out" = ok ] && say "srun ok"
    if [ "$GPUS" -gt 0 ]; then
        out=$(srun -n1 --gres=gpu:1 bash -c 'echo "$CUDA_VISIBLE_DEVICES"'); [ "$out" = 0 ] && say "gres ok"
    fi
    j=$(sbatch --parsable -D "$t" -o "$t/%a" --array=0-3%2 --wrap 'echo $SLURM_ARRAY_TASK_ID')
    for _ in $(seq 200); do [ -z "$(squeue -h -j "$j" 2>/dev/null)" ] && break; sleep 0.1; done
    [ "$(cat "$t"/[0-3] | sort | tr -d '\n')" = 0123 ] && say "array ok"
    for _ in $(seq 100); do   # real accounting lags a few seconds behind
        [ "$(sacct -n -o State --parsable2 -j "$j" | sort -u)" = COMPLETED ] && break; sleep 0.1
    done
    [ "$(sacct -n -o State --parsable2 -j "$j" | sort -u)" = COMPLETED ] && say "sacct ok"
    rm -rf "$t"
}

case "${1:-}" in
    install) install_pkgs ;;
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    restart-controller) restart_controller ;;
    status) if ready; then client sinfo -N -l; client squeue; else say "not running"; exit 3; fi ;;
    env) [ -s "$CONF" ] || die "not started"; print_env ;;
    run) shift; [ -s "$CONF" ] || die "not started"; eval "$(print_env)"; exec "$@" ;;
    selftest) ready || die "not running"; selftest ;;
    logs) tail -n "${2:-40}" "$DIR"/log/*.log ;;
    purge) stop; case "$DIR" in /|/var|/var/spool|/tmp|"$HOME") die "refusing to delete $DIR" ;; esac; rm -rf "$DIR" ;;
    *) sed -n '2,/^set /p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'; exit 2 ;;
esac
