/* The linked image as data of the program. */
    .section .rodata
    .balign 4096
    .globl lab_image_begin, lab_image_end
lab_image_begin:
    .incbin LAB_IMAGE_FILE
lab_image_end:
    .byte 0

    .section .note.GNU-stack, "", @progbits
