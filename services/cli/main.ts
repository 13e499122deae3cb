#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { asSwitchyardError } from '../common/errors.js';
import { version } from '../common/version.js';
import { benchCommand } from './bench.js';
import { coordinatorCommand } from './coordinator.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { forwardCommand } from './forward.js';
import { routerCommand } from './router.js';
import { runCommand } from './run.js';
import { statusCommand } from './status.js';
import { upCommand } from './up.js';
import { workerCommand } from './worker.js';

const exitFailure = 1;
const exitUsage = 2;
/** Errors that say how the command was called, not what it met. */
const usageCodes = ['CONFIG_INVALID', 'INVALID_ARGUMENT'];

const commands = [
  upCommand,
  coordinatorCommand,
  routerCommand,
  workerCommand,
  forwardCommand,
  runCommand,
  demoCommand,
  statusCommand,
  benchCommand,
  doctorCommand,
];

function createProgram(): Command {
  const program = new Command('switchyard')
    .description('A distributed expert-parallel cluster for Mixture-of-Experts layers.')
    .version(version)
    .helpCommand(false)
    .showHelpAfterError('(add --help for what there is)')
    .addHelpText('after', '\nExit status: 0 success, 1 failure, 2 wrong usage or configuration.');
  for (const command of commands) program.addCommand(command.copyInheritedSettings(program));
  program.exitOverride();
  for (const command of program.commands) command.exitOverride();
  return program;
}

try {
  await createProgram().parseAsync();
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
