#!/usr/bin/env -S node --max-semi-space-size=8
import { Command, CommanderError } from 'commander';
import { asSwitchyardError } from '../common/errors.js';
import { version } from '../common/version.js';

const exitFailure = 1;
const exitUsage = 2;
/** Errors that say what the command was given (flags, settings, files), not what it met (limits of servers, names that are taken). */
const usageCodes = ['CONFIG_INVALID', 'INVALID_ARGUMENT', 'MODEL_INVALID', 'UNKNOWN_LAYER'];

/** Loaded by need: a worker does not pay for what the demo imports. */
const commands: Record<string, () => Promise<Command>> = {
  up: async () => (await import('./up.js')).upCommand,
  coordinator: async () => (await import('./coordinator.js')).coordinatorCommand,
  router: async () => (await import('./router.js')).routerCommand,
  worker: async () => (await import('./worker.js')).workerCommand,
  forward: async () => (await import('./forward.js')).forwardCommand,
  run: async () => (await import('./run.js')).runCommand,
  demo: async () => (await import('./demo.js')).demoCommand,
  status: async () => (await import('./status.js')).statusCommand,
  rebalance: async () => (await import('./operate.js')).rebalanceCommand,
  drain: async () => (await import('./operate.js')).drainCommand,
  undrain: async () => (await import('./operate.js')).undrainCommand,
  cordon: async () => (await import('./operate.js')).cordonCommand,
  plan: async () => (await import('./plan.js')).planCommand,
  bench: async () => (await import('./bench.js')).benchCommand,
  simulate: async () => (await import('./simulate.js')).simulateCommand,
  doctor: async () => (await import('./doctor.js')).doctorCommand,
};

async function createProgram(named: string | undefined): Promise<Command> {
  const program = new Command('switchyard')
    .description('A distributed expert-parallel cluster for Mixture-of-Experts layers.')
    .version(version)
    .helpCommand(false)
    .showHelpAfterError('(add --help for what there is)')
    .addHelpText('after', '\nExit status: 0 success, 1 failure, 2 wrong usage, configuration or files.')
    .exitOverride();
  const loaders = named && Object.hasOwn(commands, named) ? [commands[named]!] : Object.values(commands);
  for (const load of loaders) program.addCommand((await load()).copyInheritedSettings(program));
  return program;
}

// Who reads the output may leave early, as `head` does; then there is nobody left to talk to.
process.stdout.on('error', ({ code, message }: NodeJS.ErrnoException) => {
  if (code !== 'EPIPE') {
    const kind = code === 'ENOSPC' ? 'RESOURCE_EXHAUSTED' : 'DATA_LOSS';
    process.stderr.write(`switchyard: ${kind}: standard output could not be written: ${message}\n`);
  }
  process.exit(exitFailure);
});

try {
  await (await createProgram(process.argv[2])).parseAsync();
} catch (thrown) {
  if (thrown instanceof CommanderError) {
    // Commander has printed its own message.
    process.exitCode = thrown.exitCode === 0 ? 0 : exitUsage;
  } else {
    const error = asSwitchyardError(thrown);
    process.stderr.write(`switchyard: ${error.code}: ${error.message}\n`);
    process.exitCode = usageCodes.includes(error.code) ? exitUsage : exitFailure;
  }
}
